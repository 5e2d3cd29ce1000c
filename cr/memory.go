package cr

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/cr/mem"
	"github.com/stasis-cr/stasis/cr/procfs"
	"github.com/stasis-cr/stasis/cr/remote"
)

// lack is what a member's memory still needs once it is mapped.
type lack struct {
	extents []*blob.Extent // pages to be written
	huge    []*blob.Huge   // huge pages to be made
	fresh   []*blob.VMA    // mappings that nothing is in yet
}

// sharedMemory is a piece of anonymous shared memory. Init maps the whole of it
// for a while: filled through a mapping, it is charged to the container.
type sharedMemory struct {
	file *os.File
	at   remote.Addr
	size uint64
	want []*blob.Extent // by address in init
}

// filesPerMap bounds how many files one process is sent at once to map.
const filesPerMap = 16

// mapAll gives every member the mappings of its image, still empty, that has not
// got them at its birth.
func (r *restorer) mapAll(ctx context.Context) error {
	one := func(ctx context.Context, m *member) error { return r.mapMember(ctx, m, nil) }
	all := r.alive()
	if err := r.together(ctx, all[:1], one); err != nil { // init
		return err
	}
	return r.together(ctx, all[1:], one)
}

// mapMember replaces what a member has mapped by what it had, but for what it
// keeps of its parent's. Init is mapped before all others: shared memory is made
// in it.
func (r *restorer) mapMember(ctx context.Context, m *member, in *mem.Inheritance) error {
	if m.mapped {
		return nil
	}
	held := make([]mem.Region, 0)
	m.lacks = r.lazy.before(m.mm)
	if in != nil {
		m.lacks = lack{in.Want, in.Huge, in.Fresh}
		held = mem.RegionsOf(in.Held)
	}
	if err := r.clear(ctx, m, held); err != nil {
		return err
	}
	if err := r.mapVMAs(ctx, m); err != nil {
		return err
	}
	m.mapped = true
	return r.setMM(ctx, m)
}

// clear unmaps all that a member has, but for what is held and the kernel's own
// mappings, which it moves to their place.
func (r *restorer) clear(ctx context.Context, m *member, held []mem.Region) error {
	scratch := m.own.Whole()
	maps, err := procfs.ReadMaps(m.hostPID)
	if err != nil {
		return err
	}
	var calls []remote.Call
	var vdso mem.Vdso
	for i := range maps {
		v := &maps[i]
		at := mem.Region{Start: v.Start, End: v.End}
		kind, skip, _ := vmaKind(&procfs.SMap{Mapping: *v}) //nolint:errcheck // whatever it is, it goes
		switch {
		case skip || remote.Addr(v.Start) >= scratch.Start && remote.Addr(v.Start) < scratch.End:
		case kind == blob.VMA_VDSO || kind == blob.VMA_VVAR:
			vdso = append(vdso, at)
		default:
			for _, r := range mem.Subtract(at, held) {
				calls = append(calls, remote.Call{NR: unix.SYS_MUNMAP, Args: [6]uint64{r.Start, r.End - r.Start}})
			}
		}
	}
	moves, err := vdso.Move(mem.VdsoOf(m.mm), scratch.End)
	if err != nil {
		return err
	}
	return batch(ctx, m.own, append(calls, moves...))
}

// mapVMAs makes the mappings that a member lacks, a few files at a time.
func (r *restorer) mapVMAs(ctx context.Context, m *member) error {
	var calls []remote.Call
	var behind []*blob.VMA
	for _, v := range m.lacks.fresh {
		switch v.Kind {
		case blob.VMA_ANON:
			calls = append(append(calls, mem.MapCall(v, -1)), mem.AdviceCalls(v)...)
		case blob.VMA_FILE, blob.VMA_SHMEM:
			behind = append(behind, v)
		case blob.VMA_VDSO, blob.VMA_VVAR, blob.VMA_VSYSCALL:
		}
	}
	if err := batch(ctx, m.own, calls); err != nil {
		return err
	}
	for len(behind) > 0 {
		n, err := r.mapFiles(ctx, m, behind)
		if err != nil {
			return err
		}
		behind = behind[n:]
	}
	return nil
}

// mapFiles maps the first of vmas, as many as go with filesPerMap files, and
// returns how many that were.
func (r *restorer) mapFiles(ctx context.Context, m *member, vmas []*blob.VMA) (int, error) {
	index := map[*os.File]int{}
	var files []*os.File
	var which []int
	for _, v := range vmas {
		f, err := r.behind(ctx, v)
		if err != nil {
			return 0, &errs.Error{Obj: errs.Range{Start: v.Start, End: v.End}, Err: err}
		}
		i, ok := index[f]
		if !ok {
			if len(files) == filesPerMap {
				break
			}
			i = len(files)
			index[f], files = i, append(files, f)
		}
		which = append(which, i)
	}
	fds, err := r.channel.Send(ctx, m.own, files)
	if err != nil {
		return 0, err
	}
	var calls []remote.Call
	for i, v := range vmas[:len(which)] {
		calls = append(append(calls, mem.MapCall(v, fds[which[i]])), mem.AdviceCalls(v)...)
	}
	for _, fd := range fds {
		calls = append(calls, remote.Call{NR: unix.SYS_CLOSE, Args: [6]uint64{uint64(fd)}})
	}
	return len(which), batch(ctx, m.own, calls)
}

// behind opens what lies behind a mapping.
func (r *restorer) behind(ctx context.Context, v *blob.VMA) (*os.File, error) {
	if v.Kind == blob.VMA_FILE {
		return r.objects.Mapping(ctx, v.File, v.Shared, v.Flags&uint64(blob.VMAFlag_VMA_MAYWRITE) != 0)
	}
	if s := r.shared[v.Contents]; s != nil {
		return s.file, nil
	}
	s, err := r.makeShared(ctx, r.contents[v.Contents])
	if err != nil {
		return nil, fmt.Errorf("shared memory: %w", err)
	}
	r.shared[v.Contents] = s
	return s.file, nil
}

// makeShared makes anonymous shared memory in init, at a place that no image
// uses, and opens it.
func (r *restorer) makeShared(ctx context.Context, c *blob.Contents) (*sharedMemory, error) {
	init := r.members[1]
	size := (c.Size + mem.PageSize - 1) &^ (mem.PageSize - 1)
	used, err := procfs.ReadMaps(init.hostPID)
	if err != nil {
		return nil, err
	}
	regions := mem.Regions(init.mm)
	for _, m := range used {
		regions = append(regions, mem.Region{Start: m.Start, End: m.End})
	}
	at, err := mem.Hole(size, regions)
	if err != nil {
		return nil, err
	}
	_, err = init.own.Call(ctx, unix.SYS_MMAP, uint64(at), size, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_SHARED|unix.MAP_ANONYMOUS|unix.MAP_FIXED_NOREPLACE|unix.MAP_NORESERVE, ^uint64(0), 0)
	if err != nil {
		return nil, fmt.Errorf("mmap: %w", err)
	}
	path := fmt.Sprintf("/proc/%d/map_files/%x-%x", init.hostPID, uint64(at), uint64(at)+size)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	return &sharedMemory{f, at, size, shift(c.Extents, uint64(at))}, nil
}

// shift returns extents that begin at an address instead of at offset 0.
func shift(extents []*blob.Extent, by uint64) []*blob.Extent {
	out := make([]*blob.Extent, len(extents))
	for i, e := range extents {
		out[i] = &blob.Extent{Start: e.Start + by, Pages: e.Pages, Chunk: e.Chunk, Page: e.Page}
	}
	return out
}

// setMM tells the kernel where code, heap, stack, arguments and environment are.
func (r *restorer) setMM(ctx context.Context, m *member) error {
	defer m.own.Reset()
	auxv, err := m.own.Push(m.mm.Auxv)
	if err != nil {
		return err
	}
	b := mem.PrctlMM(m.mm, auxv)
	at, err := m.own.Push(b)
	if err != nil {
		return err
	}
	_, err = m.own.Call(ctx, unix.SYS_PRCTL, unix.PR_SET_MM, unix.PR_SET_MM_MAP, uint64(at), uint64(len(b)), 0)
	return wrap("prctl PR_SET_MM_MAP", err)
}

// batch makes calls in a task, as many at a time as its scratch memory holds;
// the first that fails is the error.
func batch(ctx context.Context, c remote.Caller, calls []remote.Call) error {
	const most = 256
	for len(calls) > 0 {
		n := min(len(calls), most)
		if err := c.Batch(ctx, calls[:n]); err != nil {
			return err
		}
		for i := range calls[:n] {
			if _, err := calls[i].Result(); err != nil {
				return fmt.Errorf("system call %d (%#x): %w", calls[i].NR, calls[i].Args, err)
			}
		}
		calls = calls[n:]
	}
	return nil
}
