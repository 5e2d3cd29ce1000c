package mem

import (
	"os"
	"reflect"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/sys"
)

func TestAppendHuge(t *testing.T) {
	var list []*blob.Huge
	for _, s := range []span{
		{start: 0x200000, end: 0x400000},
		{start: 0x400000, end: 0x800000},
		{start: 0x800000, end: 0x801000},
		{start: 0xa01000, end: 0xc00000},
		{start: 0xc00000, end: 0xe00000},
	} {
		list = appendHuge(list, s)
	}
	want := []*blob.Huge{{Start: 0x200000, Count: 3}, {Start: 0xc00000, Count: 1}}
	if !reflect.DeepEqual(list, want) {
		t.Errorf("%v, want %v", list, want)
	}
}

func TestHugePieces(t *testing.T) {
	got := hugePieces([]*blob.Huge{{Start: 0x200000, Count: 2}, {Start: 1 << 30, Count: 2*hugeStep + 1}})
	const piece = hugeStep * HugeSize
	want := []Region{
		{0x200000, 0x600000},
		{1 << 30, 1<<30 + piece},
		{1<<30 + piece, 1<<30 + 2*piece},
		{1<<30 + 2*piece, 1<<30 + 2*piece + HugeSize},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%x, want %x", got, want)
	}
}

func TestMayGrowHuge(t *testing.T) {
	pages := []*blob.Extent{{Start: 0x3ff000, Pages: 2}}
	for name, tc := range map[string]struct {
		vma  *blob.VMA
		want bool
	}{
		"room":       {&blob.VMA{Start: 0x201000, End: 0x600000}, true},
		"no room":    {&blob.VMA{Start: 0x201000, End: 0x5ff000}, false},
		"no pages":   {&blob.VMA{Start: 0x401000, End: 0x1000000}, false},
		"of a file":  {&blob.VMA{Start: 0x200000, End: 0x600000, Kind: blob.VMA_FILE}, false},
		"of hugetlb": {&blob.VMA{Start: 0x200000, End: 0x600000, Flags: uint64(blob.VMAFlag_VMA_HUGETLB)}, false},
	} {
		if got := MayGrowHuge([]*blob.VMA{tc.vma}, pages); got != tc.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

func TestHugePool(t *testing.T) {
	pool := func(start, pages uint64, flags blob.VMAFlag) *blob.VMA {
		return &blob.VMA{Start: start, End: start + pages*HugeSize, Flags: uint64(flags | blob.VMAFlag_VMA_HUGETLB)}
	}
	mms := []*blob.MM{
		{Vmas: []*blob.VMA{{End: 1 << 30}, pool(1<<30, 3, 0)}},
		{
			Vmas: []*blob.VMA{pool(1<<31, 100, blob.VMAFlag_VMA_NORESERVE)},
			Extents: []*blob.Extent{
				{Start: 1<<31 - PageSize, Pages: 1},
				{Start: 1<<31 + HugeSize - PageSize, Pages: 2},
				{Start: 1<<31 + HugeSize + 2*PageSize, Pages: 2},
				{Start: 1<<31 + 50*HugeSize, Pages: 3 * 512},
				{Start: 1<<31 + 99*HugeSize, Pages: 1024},
			},
		},
	}
	if got := HugePool(mms); got != 3+2+3+1 {
		t.Errorf("%d huge pages, want 9", got)
	}
}

// TestMakeHuge makes two huge pages of memory without advice and one with, fills
// one, and looks for them.
func TestMakeHuge(t *testing.T) {
	_, err := os.Stat("/sys/kernel/mm/transparent_hugepage")
	needs(t, "a kernel with transparent huge pages", err == nil)
	const size = 8 * HugeSize
	b, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Munmap(b); err != nil {
			t.Error(err)
		}
	})
	skip := -uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) % HugeSize
	b = b[skip:]
	if err := unix.Madvise(b[4*HugeSize:5*HugeSize], unix.MADV_HUGEPAGE); err != nil {
		t.Fatal(err)
	}
	base := uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b))))
	target, err := NewTaskTarget(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close() //nolint:errcheck // nothing was written through it
	want := []*blob.Huge{{Start: base + HugeSize, Count: 2}, {Start: base + 4*HugeSize, Count: 1}}
	if err := MakeHuge(t.Context(), map[*TaskTarget][]*blob.Huge{target: want}); err != nil {
		t.Fatal(err)
	}
	if err := target.put(noise(3, HugeSize), []run{{base + 2*HugeSize, 0, HugeSize}}); err != nil {
		t.Fatal(err)
	}
	pagemap, err := os.Open("/proc/self/pagemap")
	if err != nil {
		t.Fatal(err)
	}
	defer pagemap.Close() //nolint:errcheck // read only
	var got []*blob.Huge
	v := &blob.VMA{Start: base, End: base + 6*HugeSize}
	err = scanVMA(pagemap, v, make([]sys.PageRegion, scanBatch), func(s span, huge bool) error {
		if huge {
			got = appendHuge(got, s)
		}
		return nil
	})
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
	if string(b[2*HugeSize:3*HugeSize]) != string(noise(3, HugeSize)) || b[HugeSize+1] != 0 {
		t.Error("the memory is not what was put")
	}
}
