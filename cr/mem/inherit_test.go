package mem

import (
	"math/rand/v2"
	"reflect"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/stasis-cr/stasis/cr/blob"
)

// pg is n pages in bytes.
func pg(n uint64) uint64 { return n * PageSize }

// ext is an extent of pages; the chunk's page is the number of the first plus by,
// so that equal numbers of two processes are the same place if by is.
func ext(first, pages uint64, by int) *blob.Extent {
	return &blob.Extent{Start: pg(first), Pages: uint32(pages), Page: uint32(int(first) + by)}
}

func vma(first, end uint64, change ...func(*blob.VMA)) *blob.VMA {
	v := &blob.VMA{Start: pg(first), End: pg(end), Prot: 3}
	for _, f := range change {
		f(v)
	}
	return v
}

func flags(f blob.VMAFlag) func(*blob.VMA) { return func(v *blob.VMA) { v.Flags |= uint64(f) } }

func ofFile(id uint32, offset uint64) func(*blob.VMA) {
	return func(v *blob.VMA) { v.Kind, v.File, v.Offset = blob.VMA_FILE, id, pg(offset) }
}

func sameExtents(a, b []*blob.Extent) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if !proto.Equal(a[i], b[i]) {
			return false
		}
	}
	return true
}

func TestInherit(t *testing.T) {
	shared := func(v *blob.VMA) { v.Kind, v.Shared = blob.VMA_SHMEM, true }
	readOnly := func(v *blob.VMA) { v.Prot = 1 }
	one := func(v ...*blob.VMA) []*blob.VMA { return v }
	for name, tc := range map[string]struct {
		parent, child *blob.MM
		held          []int // of the child's mappings
		want          []*blob.Extent
		drop          []Region
	}{
		"all is the same": {
			parent: &blob.MM{Vmas: one(vma(10, 20)), Extents: []*blob.Extent{ext(10, 10, 0)}},
			child:  &blob.MM{Vmas: one(vma(10, 20)), Extents: []*blob.Extent{ext(10, 4, 0), ext(14, 6, 0)}},
			held:   []int{0},
		},
		"nothing is": {
			parent: &blob.MM{Vmas: one(vma(10, 20)), Extents: []*blob.Extent{ext(10, 10, 0)}},
			child:  &blob.MM{Vmas: one(vma(10, 20)), Extents: []*blob.Extent{ext(10, 10, 1)}},
		},
		"no pages": {
			parent: &blob.MM{Vmas: one(vma(10, 20))},
			child:  &blob.MM{Vmas: one(vma(10, 20))},
		},
		"written, given back and new": {
			parent: &blob.MM{Vmas: one(vma(10, 40)), Extents: []*blob.Extent{ext(10, 20, 0)}},
			child: &blob.MM{
				Vmas: one(vma(10, 40)), Extents: []*blob.Extent{ext(12, 8, 0), ext(20, 2, 500), ext(29, 2, 900)},
			},
			held: []int{0},
			want: []*blob.Extent{ext(20, 2, 500), ext(29, 1, 900), ext(30, 1, 900)},
			drop: []Region{{pg(10), pg(12)}, {pg(22), pg(29)}},
		},
		"more runs to be made good than pages are shared": {
			parent: &blob.MM{Vmas: one(vma(10, 40)), Extents: []*blob.Extent{ext(10, 20, 0)}},
			child: &blob.MM{
				Vmas: one(vma(10, 40)), Extents: []*blob.Extent{ext(12, 2, 0), ext(20, 2, 500), ext(29, 2, 900)},
			},
			want: []*blob.Extent{ext(12, 2, 0), ext(20, 2, 500), ext(29, 2, 900)},
		},
		"more runs of the parent's than pages": {
			parent: &blob.MM{Vmas: one(vma(10, 40)), Extents: []*blob.Extent{ext(10, 1, 0), ext(11, 1, 5), ext(12, 1, 0)}},
			child:  &blob.MM{Vmas: one(vma(10, 40)), Extents: []*blob.Extent{ext(10, 1, 0), ext(12, 1, 0)}},
		},
		"a part of the parent's, and a new one": {
			parent: &blob.MM{Vmas: one(vma(10, 30)), Extents: []*blob.Extent{ext(10, 20, 0)}},
			child:  &blob.MM{Vmas: one(vma(8, 10), vma(12, 14), vma(14, 16, readOnly)), Extents: []*blob.Extent{ext(9, 7, 0)}},
			held:   []int{1},
			want:   []*blob.Extent{ext(9, 1, 0), ext(14, 2, 0)},
		},
		"more than the parent's": {
			parent: &blob.MM{Vmas: one(vma(10, 20)), Extents: []*blob.Extent{ext(10, 10, 0)}},
			child:  &blob.MM{Vmas: one(vma(10, 21)), Extents: []*blob.Extent{ext(10, 10, 0)}},
		},
		"two of the parent's": {
			parent: &blob.MM{Vmas: one(vma(10, 15), vma(15, 20)), Extents: []*blob.Extent{ext(10, 10, 0)}},
			child:  &blob.MM{Vmas: one(vma(10, 20)), Extents: []*blob.Extent{ext(10, 10, 0)}},
		},
		"locked by one of them": {
			parent: &blob.MM{Vmas: one(vma(10, 20, flags(blob.VMAFlag_VMA_LOCKED))), Extents: []*blob.Extent{ext(10, 10, 0)}},
			child:  &blob.MM{Vmas: one(vma(10, 20)), Extents: []*blob.Extent{ext(10, 10, 0)}},
			held:   []int{0},
		},
		"advised by one of them": {
			parent: &blob.MM{Vmas: one(vma(10, 20)), Extents: []*blob.Extent{ext(10, 10, 0)}},
			child:  &blob.MM{Vmas: one(vma(10, 20, flags(blob.VMAFlag_VMA_MERGEABLE))), Extents: []*blob.Extent{ext(10, 10, 0)}},
		},
		"not for children": {
			parent: &blob.MM{Vmas: one(vma(10, 20, flags(blob.VMAFlag_VMA_DONTCOPY))), Extents: []*blob.Extent{ext(10, 10, 0)}},
			child:  &blob.MM{Vmas: one(vma(10, 20, flags(blob.VMAFlag_VMA_DONTCOPY))), Extents: []*blob.Extent{ext(10, 10, 0)}},
		},
		"empty for children": {
			parent: &blob.MM{Vmas: one(vma(10, 20, flags(blob.VMAFlag_VMA_WIPEONFORK))), Extents: []*blob.Extent{ext(10, 10, 0)}},
			child:  &blob.MM{Vmas: one(vma(10, 20, flags(blob.VMAFlag_VMA_WIPEONFORK))), Extents: []*blob.Extent{ext(10, 10, 0)}},
		},
		"a part of a file": {
			parent: &blob.MM{Vmas: one(vma(10, 20, ofFile(3, 7))), Extents: []*blob.Extent{ext(10, 10, 0)}},
			child:  &blob.MM{Vmas: one(vma(12, 20, ofFile(3, 9))), Extents: []*blob.Extent{ext(12, 2, 0)}},
			held:   []int{0},
			drop:   []Region{{pg(14), pg(20)}},
		},
		"another part of a file": {
			parent: &blob.MM{Vmas: one(vma(10, 20, ofFile(3, 7))), Extents: []*blob.Extent{ext(10, 10, 0)}},
			child:  &blob.MM{Vmas: one(vma(10, 20, ofFile(3, 8))), Extents: []*blob.Extent{ext(10, 10, 0)}},
		},
		"another file": {
			parent: &blob.MM{Vmas: one(vma(10, 20, ofFile(3, 7))), Extents: []*blob.Extent{ext(10, 10, 0)}},
			child:  &blob.MM{Vmas: one(vma(10, 20, ofFile(4, 7))), Extents: []*blob.Extent{ext(10, 10, 0)}},
		},
		"shared memory is not inherited": {
			parent: &blob.MM{Vmas: one(vma(10, 20), vma(20, 30, shared)), Extents: []*blob.Extent{ext(10, 10, 0)}},
			child:  &blob.MM{Vmas: one(vma(10, 20), vma(20, 30, shared)), Extents: []*blob.Extent{ext(10, 10, 0)}},
			held:   []int{0},
		},
	} {
		in := Inherit(tc.parent, tc.child)
		if in == nil {
			if len(tc.held) > 0 {
				t.Errorf("%s: nothing is inherited", name)
			}
			continue
		}
		var held []*blob.VMA
		for _, i := range tc.held {
			held = append(held, tc.child.Vmas[i])
		}
		if !reflect.DeepEqual(in.Held, held) || !sameExtents(in.Want, tc.want) || !reflect.DeepEqual(in.Drop, tc.drop) {
			t.Errorf("%s: held %v, want %v, drop %x", name, in.Held, in.Want, in.Drop)
		}
		if len(in.Held)+len(in.Fresh) != len(tc.child.Vmas) {
			t.Errorf("%s: of %d mappings %d are held and %d fresh", name, len(tc.child.Vmas), len(in.Held), len(in.Fresh))
		}
	}
}

// TestInheritHuge has huge pages that are shared, that the child has written to,
// and that only one of them has.
func TestInheritHuge(t *testing.T) {
	const n = HugeSize / PageSize
	v := func() []*blob.VMA { return []*blob.VMA{vma(n, 6*n)} }
	parent := &blob.MM{
		Vmas: v(), Extents: []*blob.Extent{ext(n, 5*n, 0)}, Huge: []*blob.Huge{{Start: HugeSize, Count: 3}},
	}
	child := &blob.MM{
		Vmas: v(), Huge: []*blob.Huge{{Start: HugeSize, Count: 2}, {Start: 4 * HugeSize, Count: 1}},
		Extents: []*blob.Extent{ext(n, n, 0), ext(2*n, 1, 7000), ext(2*n+1, 4*n-1, 0)},
	}
	in := Inherit(parent, child)
	if in == nil {
		t.Fatal("nothing is inherited")
	}
	// The second was written to, the third is small in the child, the fourth in
	// the parent.
	want := []*blob.Extent{ext(2*n, 1, 7000), ext(2*n+1, n-1, 0), ext(4*n, n, 0)}
	drop := []Region{{2 * HugeSize, 3 * HugeSize}, {4 * HugeSize, 5 * HugeSize}}
	huge := []*blob.Huge{{Start: 2 * HugeSize, Count: 1}, {Start: 4 * HugeSize, Count: 1}}
	if !sameExtents(in.Want, want) || !reflect.DeepEqual(in.Drop, drop) || !reflect.DeepEqual(in.Huge, huge) {
		t.Errorf("want %v, drop %x, huge %v", in.Want, in.Drop, in.Huge)
	}
}

// pagesOf is where each page of extents is in the store.
func pagesOf(extents []*blob.Extent) map[uint64][2]uint32 {
	out := map[uint64][2]uint32{}
	for _, e := range extents {
		for i := range e.Pages {
			out[e.Start+uint64(i)*PageSize] = [2]uint32{e.Chunk, e.Page + i}
		}
	}
	return out
}

// randomMM has one mapping, of which some runs of pages have something.
func randomMM(r *rand.Rand, pages uint64) *blob.MM {
	mm := &blob.MM{Vmas: []*blob.VMA{vma(512, 512+pages)}}
	for at := r.Uint64N(8); at < pages; {
		n := min(1+r.Uint64N(40), pages-at)
		mm.Extents = append(mm.Extents, ext(512+at, n, int(r.Uint64N(2))))
		at += n + r.Uint64N(20)
	}
	for h := uint64(512); h+512 <= 512+pages; h += 512 {
		if r.Uint64N(3) > 0 {
			mm.Huge = appendHuge(mm.Huge, span{pg(h), pg(h + 512)})
		}
	}
	return mm
}

// TestInheritRandom follows plans for random processes: the parent's pages, less
// those dropped, with those wanted on top, are the child's.
func TestInheritRandom(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	held := 0
	for range 500 {
		pages := 1 + r.Uint64N(2000)
		parent, child := randomMM(r, pages), randomMM(r, pages)
		was := proto.CloneOf(parent)
		in := Inherit(parent, child)
		if !proto.Equal(was, parent) {
			t.Fatal("the parent's record has changed")
		}
		if in == nil {
			continue
		}
		held++
		got := pagesOf(parent.Extents)
		for _, d := range in.Drop {
			for at := d.Start; at < d.End; at += PageSize {
				delete(got, at)
			}
		}
		for at, where := range pagesOf(in.Want) {
			got[at] = where
		}
		if want := pagesOf(child.Extents); !reflect.DeepEqual(got, want) {
			t.Fatalf("from\n%v\nto\n%v: %+v", parent, child, in)
		}
	}
	if held < 100 {
		t.Errorf("only %d of 500 inherit anything", held)
	}
}

func TestUnforked(t *testing.T) {
	mm := &blob.MM{
		Vmas: []*blob.VMA{
			vma(10, 20), vma(20, 30), vma(30, 40), vma(40, 50, flags(blob.VMAFlag_VMA_DONTCOPY)), vma(50, 60, ofFile(3, 0)),
			vma(60, 70, flags(blob.VMAFlag_VMA_WIPEONFORK)), vma(70, 80, func(v *blob.VMA) { v.Kind, v.Shared = blob.VMA_SHMEM, true }),
		},
		Extents: []*blob.Extent{ext(10, 1, 0), ext(20, 1, 0), ext(40, 1, 0), ext(59, 1, 0), ext(60, 1, 0)},
	}
	got := Unforked(mm, []Region{{pg(20), pg(30)}})
	if want := []Region{{pg(10), pg(20)}, {pg(50), pg(60)}}; !reflect.DeepEqual(got, want) {
		t.Errorf("%x, want %x", got, want)
	}
}

func TestSubtract(t *testing.T) {
	holes := []Region{{2, 4}, {6, 8}, {8, 9}}
	for _, c := range []struct {
		r    Region
		want []Region
	}{
		{Region{0, 2}, []Region{{0, 2}}},
		{Region{2, 4}, nil},
		{Region{3, 7}, []Region{{4, 6}}},
		{Region{0, 10}, []Region{{0, 2}, {4, 6}, {9, 10}}},
		{Region{5, 8}, []Region{{5, 6}}},
		{Region{9, 12}, []Region{{9, 12}}},
	} {
		if got := Subtract(c.r, holes); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%v: %v, want %v", c.r, got, c.want)
		}
	}
}
