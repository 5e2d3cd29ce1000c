package mem

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stasis-cr/stasis/cr/blob"
)

// where is what a list says of one page.
type where struct{ chunk, page uint32 }

func expand(list []*blob.Extent) map[uint64]where {
	out := map[uint64]where{}
	for _, e := range list {
		for i := range e.Pages {
			w := where{e.Chunk, e.Page + i}
			if !inStore(e) {
				w.page = e.Page
			}
			out[e.Start/PageSize+uint64(i)] = w
		}
	}
	return out
}

func pagesIn(spans []span) map[uint64]bool {
	out := map[uint64]bool{}
	for _, s := range spans {
		for at := s.start; at < s.end; at += PageSize {
			out[at/PageSize] = true
		}
	}
	return out
}

// disjoint says whether a list is ascending and disjoint.
func disjoint(list []*blob.Extent) bool {
	return slices.IsSortedFunc(list, func(a, b *blob.Extent) int {
		if extentEnd(a) <= b.Start {
			return -1
		}
		return 1
	}) || len(list) < 2
}

// randomLists makes lists over 64 pages, so that everything overlaps.
func randomLists(r *rand.Rand) (list []*blob.Extent, spans []span) {
	for at := uint64(0); at < 64; {
		at += r.Uint64N(4)
		n := 1 + r.Uint64N(6)
		if r.IntN(3) == 0 {
			spans = append(spans, span{start: at * PageSize, end: (at + n) * PageSize})
		} else {
			e := &blob.Extent{Start: at * PageSize, Pages: uint32(n), Chunk: r.Uint32N(5), Page: r.Uint32N(9)}
			if r.IntN(4) == 0 {
				e.Chunk, e.Page = zeroChunk, 0
			}
			list = append(list, e)
		}
		at += n
	}
	return list, spans
}

// TestExtents compares the functions on lists with the same on pages.
func TestExtents(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 20000 {
		a, _ := randomLists(r)
		b, _ := randomLists(r)
		_, s := randomLists(r)
		_, u := randomLists(r)
		pa, pb, ps := expand(a), expand(b), pagesIn(s)

		in := expand(inSpans(a, s))
		for p, w := range pa {
			if got, ok := in[p]; ok != ps[p] || ok && got != w {
				t.Fatalf("inSpans: page %d is %v %v of %v in %v", p, got, ok, a, s)
			}
		}
		pu, cover := pagesIn(u), joined(a, nil)
		out, meet, cut, sum, covered := pagesIn(except(s, u)), pagesIn(common(s, u)), pagesIn(except(s, cover)), pagesIn(union(s, u)), pagesIn(cover)
		zeros := pagesIn(joined(a, func(e *blob.Extent) bool { return e.Chunk == zeroChunk }))
		for p := range uint64(99) {
			w, is := pa[p]
			for what, c := range map[string]struct{ got, want bool }{
				"except": {out[p], ps[p] && !pu[p]}, "common": {meet[p], ps[p] && pu[p]}, "union": {sum[p], ps[p] || pu[p]},
				"except joined": {cut[p], ps[p] && !is}, "joined": {covered[p], is}, "joined zeros": {zeros[p], is && w.chunk == zeroChunk},
			} {
				if c.got != c.want {
					t.Fatalf("%s: page %d is %v, want %v; of %v and %v, %v", what, p, c.got, c.want, s, u, a)
				}
			}
		}
		both := overlay(a, b)
		if !disjoint(both) {
			t.Fatalf("overlay of %v and %v: %v", a, b, both)
		}
		got := expand(both)
		for p := range uint64(99) {
			want, ok := pb[p]
			if !ok {
				want, ok = pa[p]
			}
			if w, is := got[p]; is != ok || w != want {
				t.Fatalf("overlay: page %d is %v %v, want %v %v", p, w, is, want, ok)
			}
		}
	}
}
