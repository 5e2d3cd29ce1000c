package cr

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/cr/mem"
	"github.com/stasis-cr/stasis/cr/object"
	"github.com/stasis-cr/stasis/cr/procfs"
)

// vmaFlags pairs the kernel's flags with those of the image.
var vmaFlags = []struct {
	kernel procfs.VMFlag
	image  blob.VMAFlag
}{
	{procfs.VMGrowsDown, blob.VMAFlag_VMA_GROWSDOWN},
	{procfs.VMLocked, blob.VMAFlag_VMA_LOCKED},
	{procfs.VMLockOnFault, blob.VMAFlag_VMA_LOCKONFAULT},
	{procfs.VMSeqRead, blob.VMAFlag_VMA_SEQ_READ},
	{procfs.VMRandRead, blob.VMAFlag_VMA_RAND_READ},
	{procfs.VMDontCopy, blob.VMAFlag_VMA_DONTCOPY},
	{procfs.VMDontDump, blob.VMAFlag_VMA_DONTDUMP},
	{procfs.VMWipeOnFork, blob.VMAFlag_VMA_WIPEONFORK},
	{procfs.VMHugePage, blob.VMAFlag_VMA_HUGEPAGE},
	{procfs.VMNoHugePage, blob.VMAFlag_VMA_NOHUGEPAGE},
	{procfs.VMMergeable, blob.VMAFlag_VMA_MERGEABLE},
	{procfs.VMNoReserve, blob.VMAFlag_VMA_NORESERVE},
	{procfs.VMSealed, blob.VMAFlag_VMA_SEALED},
	{procfs.VMAccount, blob.VMAFlag_VMA_ACCOUNT},
	{procfs.VMHugeTLB, blob.VMAFlag_VMA_HUGETLB},
}

// vmaKind sorts a mapping. An error says why it can't be saved; skip is true
// for what the kernel gives every process.
func vmaKind(m *procfs.SMap) (kind blob.VMA_Kind, skip bool, err error) {
	switch {
	case m.Name == "[vsyscall]":
		return 0, true, nil
	case m.Name == "[vdso]":
		return blob.VMA_VDSO, false, nil
	case strings.HasPrefix(m.Name, "[vvar"):
		return blob.VMA_VVAR, false, nil
	}
	if why := unsaveable(m); why != "" {
		return 0, false, fmt.Errorf("%s (%s): %w", why, m.Name, errs.ErrUnsupported)
	}
	switch {
	case m.Flags&procfs.VMHugeTLB != 0:
		return blob.VMA_ANON, false, nil
	case m.Shared && strings.HasPrefix(m.Name, "/dev/zero (deleted)"):
		return blob.VMA_SHMEM, false, nil
	case m.Inode == 0 && !m.Shared:
		return blob.VMA_ANON, false, nil
	case m.Inode == 0:
		return 0, false, fmt.Errorf("shared mapping of %q: %w", m.Name, errs.ErrUnsupported)
	}
	return blob.VMA_FILE, false, nil
}

// unsaveable says what is special about a mapping, if its pages are no plain
// memory.
func unsaveable(m *procfs.SMap) string {
	for _, s := range []struct {
		flag procfs.VMFlag
		why  string
	}{
		{procfs.VMIO | procfs.VMPFNMap, "memory of a device"},
		{procfs.VMShadowStack, "a shadow stack"},
		{procfs.VMUffdMissing | procfs.VMUffdWP | procfs.VMUffdMinor, "memory watched by a userfaultfd"},
		{procfs.VMDroppable, "droppable memory"},
	} {
		if m.Flags&s.flag != 0 {
			return s.why
		}
	}
	if m.Flags&procfs.VMHugeTLB != 0 && !hugePool(m) {
		return "memory of hugetlbfs that is not private, or not of 2 MiB pages"
	}
	if m.OtherFlags != "" {
		return fmt.Sprintf("memory with the flags %q, which are newer than this engine", m.OtherFlags)
	}
	switch {
	case strings.HasPrefix(m.Name, "/SYSV"):
		return "System V shared memory"
	case strings.HasPrefix(m.Name, "/[aio]"):
		return "a ring of asynchronous I/O"
	case strings.HasPrefix(m.Name, "anon_inode:"):
		return "memory of a kernel object"
	}
	return ""
}

// hugePool says that a mapping is private memory of 2 MiB pages of the pool, made
// without a file: MAP_HUGETLB. The kernel shows it as a file of its own.
func hugePool(m *procfs.SMap) bool {
	return !m.Shared && m.KernelPageSize == mem.HugeSize && strings.HasPrefix(m.Name, "/anon_hugepage")
}

// surveyMappings lists the mappings that can't be saved, and keeps them all.
func surveyMappings(ctx context.Context, c *container, ref object.ProcRef, objects *object.Capture, read readMaps) error {
	maps, err := read(ref.HostPID)
	if err != nil {
		return err
	}
	if c.kept.of(ref.HostPID) != nil {
		for i := range maps {
			maps[i].Flags &^= ours
		}
	}
	c.maps[ref.HostPID] = maps
	var all []error
	for i := range maps {
		m := &maps[i]
		kind, skip, err := vmaKind(m)
		if err == nil && !skip && kind == blob.VMA_FILE {
			_, err = objects.Mapping(ctx, ref, m.Start, m.End, m.Shared, m.Flags&procfs.VMMayWrite != 0)
			if vanished(err) {
				err = nil
			}
		} else if err != nil {
			err = &errs.Error{PID: ref.PID, Obj: errs.Range{Start: m.Start, End: m.End}, Err: err}
		}
		all = append(all, err)
	}
	return errors.Join(all...)
}

// describeMM records the address space of a stopped process, but for its pages
// and the end of its heap, which only the process itself can tell.
func describeMM(ctx context.Context, ref object.ProcRef, st *procfs.Stat, maps []procfs.SMap, mm *blob.MM, objects *object.Capture, store *contents) (err error) {
	mm.StartCode, mm.EndCode, mm.StartData, mm.EndData = st.StartCode, st.EndCode, st.StartData, st.EndData
	mm.StartBrk, mm.StartStack = st.StartBrk, st.StartStack
	mm.ArgStart, mm.ArgEnd, mm.EnvStart, mm.EnvEnd = st.ArgStart, st.ArgEnd, st.EnvStart, st.EnvEnd
	if mm.Auxv, err = procfs.ReadFile(fmt.Sprintf("/proc/%d/auxv", ref.HostPID)); err != nil {
		return err
	}
	if mm.Exe, err = objects.Path(ctx, ref, "exe"); err != nil {
		return err
	}
	for i := range maps {
		v, err := describeVMA(ctx, ref, &maps[i], objects, store)
		if err != nil {
			return &errs.Error{Obj: errs.Range{Start: maps[i].Start, End: maps[i].End}, Err: err}
		}
		if v != nil {
			mm.Vmas = append(mm.Vmas, v)
		}
	}
	return nil
}

func describeVMA(ctx context.Context, ref object.ProcRef, m *procfs.SMap, objects *object.Capture, store *contents) (*blob.VMA, error) {
	kind, skip, err := vmaKind(m)
	if err != nil || skip {
		return nil, err
	}
	v := &blob.VMA{
		Start: m.Start, End: m.End, Prot: m.Prot, Kind: kind, Shared: m.Shared, Offset: m.Offset,
		Name: strings.ToValidUTF8(m.Name, "?"),
	}
	for _, f := range vmaFlags {
		if m.Flags&f.kernel != 0 {
			v.Flags |= uint64(f.image)
		}
	}
	switch kind {
	case blob.VMA_FILE:
		if m.Shared && m.Flags&procfs.VMMayWrite != 0 {
			v.Flags |= uint64(blob.VMAFlag_VMA_MAYWRITE)
		}
		v.File, err = objects.Mapping(ctx, ref, m.Start, m.End, m.Shared, m.Flags&procfs.VMMayWrite != 0)
	case blob.VMA_SHMEM:
		v.Contents, err = store.sharedMemory(ctx, ref.HostPID, m)
	case blob.VMA_ANON, blob.VMA_VDSO, blob.VMA_VVAR:
		v.Offset = 0
	case blob.VMA_VSYSCALL: // it has nothing to save
	}
	return v, err
}

// sharedMemory stores anonymous shared memory, once for all who map it.
func (c *contents) sharedMemory(ctx context.Context, pid int, m *procfs.SMap) (uint32, error) {
	key := sharedKey{fmt.Sprintf("%d:%d", m.Major, m.Minor), m.Inode}
	if id := c.shared[key]; id != 0 {
		return id, nil
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/map_files/%x-%x", pid, m.Start, m.End))
	if err != nil {
		return 0, err
	}
	defer f.Close() //nolint:errcheck // read only
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	id, err := c.Write(ctx, f, st.Size())
	c.shared[key] = id
	return id, err
}
