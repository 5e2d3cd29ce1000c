package mem

import (
	"cmp"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/cr/remote"
)

// Bounds of the addresses that a hole may lie in: above what mmap_min_addr may
// be, below what the kernel hands out by itself.
const (
	holeLow  = 0x1000_0000
	holeHigh = 0x7000_0000_0000
)

// Region is a range of addresses in use.
type Region struct{ Start, End uint64 }

// Hole finds size bytes of addresses that none of used holds, with a page to
// spare on both sides.
func Hole(size uint64, used ...[]Region) (remote.Addr, error) {
	all := slices.Concat(used...)
	slices.SortFunc(all, func(a, b Region) int { return cmp.Compare(a.Start, b.Start) })
	at := uint64(holeLow)
	size = min(size, holeHigh) // the sums below must not wrap
	for _, r := range all {
		if r.Start > at && r.Start-at >= size+2*PageSize {
			break
		}
		at = max(at, min(r.End, holeHigh))
	}
	if at+size+2*PageSize > holeHigh {
		return 0, fmt.Errorf("no %d free bytes in the address space", size)
	}
	return remote.Addr(at + PageSize), nil
}

// Regions lists what the mappings of mm hold.
func Regions(mm *blob.MM) []Region {
	return append(RegionsOf(mm.Vmas), Region{mm.StartBrk, mm.Brk})
}

// RegionsOf lists what mappings hold.
func RegionsOf(vmas []*blob.VMA) []Region {
	out := make([]Region, 0, len(vmas)+1)
	for _, v := range vmas {
		out = append(out, Region{v.Start, v.End})
	}
	return out
}

// Vdso is where the kernel's own mappings of a task are: the data pages and the
// code, in ascending order as /proc/PID/maps shows them.
type Vdso []Region

// VdsoOf returns the kernel's own mappings in mm.
func VdsoOf(mm *blob.MM) Vdso {
	var out Vdso
	for _, v := range mm.Vmas {
		if v.Kind == blob.VMA_VDSO || v.Kind == blob.VMA_VVAR {
			out = append(out, Region{v.Start, v.End})
		}
	}
	return out
}

// span returns the first and the last address.
func (v Vdso) span() Region { return Region{v[0].Start, v[len(v)-1].End} }

// Move returns the calls that bring the kernel's mappings from have to want.
// Code and data refer to each other by distance, so the distances must be the
// same on both sides. via is a hole as large as the whole, for when the old and
// the new place overlap.
func (v Vdso) Move(want Vdso, via remote.Addr) ([]remote.Call, error) {
	if len(want) == 0 {
		return nil, nil
	}
	if len(v) != len(want) {
		return nil, fmt.Errorf("this kernel's vdso has %d mappings, the image's %d: %w", len(v), len(want), errs.ErrHost)
	}
	from, to := v.span(), want.span()
	for i := range v {
		if v[i].Start-from.Start != want[i].Start-to.Start || v[i].End-v[i].Start != want[i].End-want[i].Start {
			return nil, fmt.Errorf("this kernel's vdso is laid out differently from the image's: %w", errs.ErrHost)
		}
	}
	switch {
	case from == to:
		return nil, nil
	case from.Start < to.End && to.Start < from.End:
		return append(v.shift(from.Start, uint64(via)), v.at(from.Start, uint64(via)).shift(uint64(via), to.Start)...), nil
	}
	return v.shift(from.Start, to.Start), nil
}

// at returns v moved from one base to another.
func (v Vdso) at(from, to uint64) Vdso {
	out := make(Vdso, len(v))
	for i, r := range v {
		out[i] = Region{r.Start - from + to, r.End - from + to}
	}
	return out
}

func (v Vdso) shift(from, to uint64) []remote.Call {
	calls := make([]remote.Call, 0, len(v))
	for _, r := range v {
		n := r.End - r.Start
		calls = append(calls, remote.Call{NR: unix.SYS_MREMAP, Args: [6]uint64{
			r.Start, n, n, unix.MREMAP_MAYMOVE | unix.MREMAP_FIXED, r.Start - from + to,
		}})
	}
	return calls
}

// MapCall returns the call that makes v. fd is the task's descriptor of the
// file behind it, or -1.
func MapCall(v *blob.VMA, fd remote.FD) remote.Call {
	flags := uint64(unix.MAP_FIXED_NOREPLACE)
	if v.Shared {
		flags |= unix.MAP_SHARED
	} else {
		flags |= unix.MAP_PRIVATE
	}
	if fd < 0 {
		flags |= unix.MAP_ANONYMOUS
	}
	if v.Flags&uint64(blob.VMAFlag_VMA_GROWSDOWN) != 0 {
		flags |= unix.MAP_GROWSDOWN
	}
	if v.Flags&uint64(blob.VMAFlag_VMA_NORESERVE) != 0 {
		flags |= unix.MAP_NORESERVE
	}
	if v.Flags&uint64(blob.VMAFlag_VMA_HUGETLB) != 0 {
		flags |= unix.MAP_HUGETLB | unix.MAP_HUGE_2MB
	}
	prot := uint64(v.Prot)
	if accountedOnly(v) {
		prot |= unix.PROT_WRITE
	}
	return remote.Call{NR: unix.SYS_MMAP, Args: [6]uint64{
		v.Start, v.End - v.Start, prot, flags, uint64(int64(fd)), v.Offset,
	}}
}

// accountedOnly says that v can't be written now but was counted as memory that
// can: it is mapped so and protected later, or it would merge with a neighbour
// that never could, and the program would find its mappings changed.
func accountedOnly(v *blob.VMA) bool {
	return !v.Shared && v.Flags&uint64(blob.VMAFlag_VMA_ACCOUNT) != 0 && v.Prot&unix.PROT_WRITE == 0
}

// advices maps flags of a mapping to the advice that sets them (madvise(2)).
// Those that fork and the dumper read can be set at any time.
var advices = []struct {
	flag   blob.VMAFlag
	advice uint64
}{
	{blob.VMAFlag_VMA_SEQ_READ, unix.MADV_SEQUENTIAL},
	{blob.VMAFlag_VMA_RAND_READ, unix.MADV_RANDOM},
	{blob.VMAFlag_VMA_DONTCOPY, unix.MADV_DONTFORK},
	{blob.VMAFlag_VMA_DONTDUMP, unix.MADV_DONTDUMP},
	{blob.VMAFlag_VMA_WIPEONFORK, unix.MADV_WIPEONFORK},
	{blob.VMAFlag_VMA_HUGEPAGE, unix.MADV_HUGEPAGE},
	{blob.VMAFlag_VMA_NOHUGEPAGE, unix.MADV_NOHUGEPAGE},
	{blob.VMAFlag_VMA_MERGEABLE, unix.MADV_MERGEABLE},
}

// AdviceCalls returns the calls that give v its advice, before it is filled.
func AdviceCalls(v *blob.VMA) []remote.Call {
	var calls []remote.Call
	for _, a := range advices {
		if v.Flags&uint64(a.flag) != 0 {
			calls = append(calls, remote.Call{NR: unix.SYS_MADVISE, Args: [6]uint64{v.Start, v.End - v.Start, a.advice}})
		}
	}
	return calls
}

// AdviseCalls returns the calls that give regions one advice.
func AdviseCalls(regions []Region, advice uint64) []remote.Call {
	calls := make([]remote.Call, 0, len(regions))
	for _, r := range regions {
		calls = append(calls, remote.Call{NR: unix.SYS_MADVISE, Args: [6]uint64{r.Start, r.End - r.Start, advice}})
	}
	return calls
}

const (
	sysMseal     = 462 // Linux 6.10
	mlockOnFault = 1   // MLOCK_ONFAULT
)

// SealCalls returns the calls that protect, lock and seal v, after it is filled.
func SealCalls(v *blob.VMA) []remote.Call {
	var calls []remote.Call
	if accountedOnly(v) {
		calls = append(calls, remote.Call{NR: unix.SYS_MPROTECT, Args: [6]uint64{v.Start, v.End - v.Start, uint64(v.Prot)}})
	}
	if v.Flags&uint64(blob.VMAFlag_VMA_LOCKED) != 0 {
		how := uint64(0)
		if v.Flags&uint64(blob.VMAFlag_VMA_LOCKONFAULT) != 0 {
			how = mlockOnFault
		}
		calls = append(calls, remote.Call{NR: unix.SYS_MLOCK2, Args: [6]uint64{v.Start, v.End - v.Start, how}})
	}
	if v.Flags&uint64(blob.VMAFlag_VMA_SEALED) != 0 {
		calls = append(calls, remote.Call{NR: sysMseal, Args: [6]uint64{v.Start, v.End - v.Start}})
	}
	return calls
}

// mmMapSize is the size of struct prctl_mm_map (include/uapi/linux/prctl.h).
const mmMapSize = 104

// PrctlMM encodes mm as struct prctl_mm_map: PR_SET_MM_MAP takes it without a
// capability as long as exe_fd is -1. auxv is the address of mm's auxiliary
// vector in the task.
func PrctlMM(mm *blob.MM, auxv remote.Addr) []byte {
	b := make([]byte, 0, mmMapSize)
	for _, x := range []uint64{
		mm.StartCode, mm.EndCode, mm.StartData, mm.EndData, mm.StartBrk, mm.Brk, mm.StartStack,
		mm.ArgStart, mm.ArgEnd, mm.EnvStart, mm.EnvEnd, uint64(auxv),
		uint64(len(mm.Auxv)) | 0xffffffff<<32, // auxv_size u32, exe_fd u32 = -1
	} {
		b = appendU64(b, x)
	}
	return b
}

func appendU64(b []byte, x uint64) []byte {
	return append(b, byte(x), byte(x>>8), byte(x>>16), byte(x>>24), byte(x>>32), byte(x>>40), byte(x>>48), byte(x>>56))
}
