package blob

import (
	"fmt"
	"slices"
	"sort"

	"google.golang.org/protobuf/proto"

	"github.com/stasis-cr/stasis/cr/errs"
)

const (
	maxVMAs      = 1 << 21
	maxAuxv      = 4096
	knownProt    = 7 // PROT_READ, PROT_WRITE, PROT_EXEC
	knownVMA     = 2*uint64(VMAFlag_VMA_HUGETLB) - 1
	hugeSize     = 2 << 20
	vsyscallPage = 0xffffffffff600000
)

func (v *validator) mms() (err error) {
	if v.mmsByID, err = index("mm", v.img.MMs); err != nil {
		return err
	}
	for _, m := range v.img.MMs {
		if err := v.mm(m); err != nil {
			return in(err, "mm %d", m.Id)
		}
	}
	return nil
}

func (v *validator) mm(m *MM) error {
	for _, a := range []uint64{
		m.StartCode, m.EndCode, m.StartData, m.EndData, m.StartBrk, m.Brk, m.StartStack,
		m.ArgStart, m.ArgEnd, m.EnvStart, m.EnvEnd,
	} {
		if a > taskSize {
			return bad("address %x", a)
		}
	}
	if len(m.Auxv)%16 != 0 || len(m.Auxv) > maxAuxv {
		return bad("auxiliary vector of %d bytes", len(m.Auxv))
	}
	if v.filesByID[m.Exe] == nil {
		return bad("no file %d for its program", m.Exe)
	}
	if len(m.Vmas) > maxVMAs {
		return bad("%d mappings", len(m.Vmas))
	}
	var last uint64
	for _, a := range m.Vmas {
		if a.Start < last {
			return bad("mapping %x-%x: the one before ends at %x", a.Start, a.End, last)
		}
		if err := v.vma(a); err != nil {
			return in(err, "mapping %x-%x", a.Start, a.End)
		}
		last = a.End
	}
	if err := hugePages(m); err != nil {
		return err
	}
	_, err := v.extents(m.Extents, private(m.Vmas, VMA_ANON, VMA_FILE))
	return err
}

// hugePages checks the runs of huge pages: ascending, disjoint, and of anonymous
// memory that is not huge by itself.
func hugePages(m *MM) error {
	covers := private(m.Vmas, VMA_ANON)
	var last uint64
	for _, h := range m.Huge {
		end := h.Start + uint64(h.Count)*hugeSize
		if h.Start%hugeSize != 0 || h.Count == 0 || h.Start < last || h.Start > taskSize || !covers(h.Start, end) {
			return bad("%d huge pages at %x", h.Count, h.Start)
		}
		last = end
	}
	for _, a := range m.Vmas {
		if a.Flags&uint64(VMAFlag_VMA_HUGETLB) != 0 && overlaps(m.Huge, a) {
			return bad("mapping %x-%x: huge pages of both kinds", a.Start, a.End)
		}
	}
	return nil
}

func overlaps(huge []*Huge, a *VMA) bool {
	i := sort.Search(len(huge), func(i int) bool { return huge[i].Start+uint64(huge[i].Count)*hugeSize > a.Start })
	return i < len(huge) && huge[i].Start < a.End
}

// mmsWere refuses what a record of revision 1 can't hold.
func mmsWere(_ uint16, m proto.Message) error {
	mm, ok := m.(*MM)
	if !ok {
		return nil
	}
	newer := len(mm.Huge) > 0
	for _, a := range mm.Vmas {
		newer = newer || a.Flags&uint64(VMAFlag_VMA_HUGETLB) != 0
	}
	if newer {
		return fmt.Errorf("revision 1 with huge pages: %w", errs.ErrCorrupt)
	}
	return nil
}

func (v *validator) vma(a *VMA) error {
	top := uint64(taskSize)
	if a.Kind == VMA_VSYSCALL && a.Start == vsyscallPage {
		top = vsyscallPage + pageSize
	}
	switch {
	case a.Start%pageSize != 0 || a.End%pageSize != 0 || a.Start >= a.End || a.End > top:
		return bad("not a range of pages of a task")
	case a.Prot&^knownProt != 0:
		return bad("protection %#x", a.Prot)
	case a.Flags&^knownVMA != 0:
		return fmt.Errorf("unknown flags %#x: %w", a.Flags&^knownVMA, errs.ErrVersion)
	case a.Offset%pageSize != 0 || a.Offset > maxOffset-(a.End-a.Start):
		return bad("offset %#x", a.Offset)
	}
	if a.Flags&uint64(VMAFlag_VMA_HUGETLB) != 0 && (a.Kind != VMA_ANON || (a.Start|a.End)%hugeSize != 0) {
		return bad("not a range of huge pages")
	}
	return v.backing(a)
}

// backing checks that a mapping has what its kind needs, and no more.
func (v *validator) backing(a *VMA) error {
	var file, contents, shared bool
	switch a.Kind {
	case VMA_ANON, VMA_VDSO, VMA_VVAR, VMA_VSYSCALL:
	case VMA_FILE:
		file, shared = true, a.Shared
	case VMA_SHMEM:
		contents, shared = true, true
	default:
		return fmt.Errorf("unknown kind %d: %w", a.Kind, errs.ErrVersion)
	}
	switch {
	case a.Shared != shared:
		return bad("%s, shared: %t", a.Kind, a.Shared)
	case file != (a.File != 0) || file && v.filesByID[a.File] == nil:
		return bad("%s of file %d", a.Kind, a.File)
	case contents != (a.Contents != 0) || contents && v.contentsByID[a.Contents] == nil:
		return bad("%s of contents %d", a.Kind, a.Contents)
	}
	return nil
}

// private tells whether a range is covered by private mappings of some kinds,
// without holes. vmas are ascending.
func private(vmas []*VMA, kinds ...VMA_Kind) func(start, end uint64) bool {
	return func(start, end uint64) bool {
		i := sort.Search(len(vmas), func(i int) bool { return vmas[i].End > start })
		for ; start < end; i++ {
			if i == len(vmas) || vmas[i].Start > start || vmas[i].Shared || !slices.Contains(kinds, vmas[i].Kind) {
				return false
			}
			start = vmas[i].End
		}
		return true
	}
}
