package mem

import (
	"math"
	"slices"

	"github.com/stasis-cr/stasis/cr/blob"
)

// Chunks that are none stand in the lists of a [Tracker] only: zeroChunk is that
// of pages that were read and are zero, for which an image has no extents, and
// lostChunk that of pages that could not be read when it was their turn.
const (
	zeroChunk = math.MaxUint32
	lostChunk = math.MaxUint32 - 1
)

// inStore says whether an extent's pages are in the store.
func inStore(e *blob.Extent) bool { return e.Chunk < lostChunk }

// Lists of extents are ascending and disjoint, as those of an image; so are
// lists of spans. The functions here don't change what they are given.

func extentEnd(e *blob.Extent) uint64 { return e.Start + uint64(e.Pages)*PageSize }

// part is the piece of e in s, which it overlaps.
func part(e *blob.Extent, s span) *blob.Extent {
	start, end := max(e.Start, s.start), min(extentEnd(e), s.end)
	p := &blob.Extent{Start: start, Pages: uint32((end - start) / PageSize), Chunk: e.Chunk, Page: e.Page}
	if inStore(e) {
		p.Page += uint32((start - e.Start) / PageSize)
	}
	return p
}

// inSpans returns the parts of list that lie in spans.
func inSpans(list []*blob.Extent, spans []span) []*blob.Extent {
	var out []*blob.Extent
	for i, j := 0, 0; i < len(list) && j < len(spans); {
		e, s := list[i], spans[j]
		if e.Start < s.end && s.start < extentEnd(e) {
			out = append(out, part(e, s))
		}
		if extentEnd(e) < s.end {
			i++
		} else {
			j++
		}
	}
	return out
}

// joined returns the spans that the extents of list cover, of those only that
// which takes; nil takes all.
func joined(list []*blob.Extent, which func(*blob.Extent) bool) (out []span) {
	for _, e := range list {
		if which != nil && !which(e) {
			continue
		}
		if n := len(out); n > 0 && out[n-1].end == e.Start {
			out[n-1].end = extentEnd(e)
			continue
		}
		out = append(out, span{start: e.Start, end: extentEnd(e)})
	}
	return out
}

// from returns the tail of spans that ends behind addr.
func from(spans []span, addr uint64) []span {
	i, _ := slices.BinarySearchFunc(spans, addr, func(s span, a uint64) int {
		if s.end <= a {
			return -1
		}
		return 1
	})
	return spans[i:]
}

// common returns what lies in spans of both lists.
func common(a, b []span) (out []span) {
	if len(a) == 0 || len(b) == 0 {
		return nil
	}
	for a, b = from(a, b[0].start), from(b, a[0].start); len(a) > 0 && len(b) > 0; {
		if start, end := max(a[0].start, b[0].start), min(a[0].end, b[0].end); start < end {
			out = append(out, span{start: start, end: end})
		}
		if a[0].end < b[0].end {
			a = a[1:]
		} else {
			b = b[1:]
		}
	}
	return out
}

// except returns what of spans lies in none of cut.
func except(spans, cut []span) (out []span) {
	for _, s := range spans {
		at := s.start
		for _, c := range from(cut, s.start) {
			if c.start >= s.end {
				break
			}
			if c.start > at {
				out = append(out, span{start: at, end: c.start})
			}
			at = c.end
		}
		if at < s.end {
			out = append(out, span{start: at, end: s.end})
		}
	}
	return out
}

// overlay returns the extents of both lists; where they overlap, those of above.
// There may be a million of them while a container waits: what stays whole is not
// copied.
func overlay(below, above []*blob.Extent) []*blob.Extent {
	out := make([]*blob.Extent, 0, len(below)+len(above))
	covered := uint64(0) // up to where above has been looked at
	for _, b := range below {
		at, end := max(b.Start, covered), extentEnd(b)
		for ; len(above) > 0 && above[0].Start < end; above = above[1:] {
			if above[0].Start > at {
				out = append(out, part(b, span{start: at, end: above[0].Start}))
			}
			out = append(out, above[0])
			covered = extentEnd(above[0])
			at = max(at, covered)
		}
		switch {
		case at == b.Start:
			out = append(out, b)
		case at < end:
			out = append(out, part(b, span{start: at, end: end}))
		}
	}
	return append(out, above...)
}

// appendPage adds a page of a chunk that is none to the end of list.
func appendPage(list []*blob.Extent, addr uint64, chunk uint32) []*blob.Extent {
	if n := len(list); n > 0 && list[n-1].Chunk == chunk && extentEnd(list[n-1]) == addr {
		list[n-1].Pages++
		return list
	}
	return append(list, &blob.Extent{Start: addr, Pages: 1, Chunk: chunk})
}

// union returns the spans of both lists, joined where they meet.
func union(a, b []span) []span {
	all := slices.Concat(a, b)
	slices.SortFunc(all, func(x, y span) int {
		switch {
		case x.start < y.start:
			return -1
		case x.start > y.start:
			return 1
		}
		return 0
	})
	var out []span
	for _, s := range all {
		if n := len(out); n > 0 && out[n-1].end >= s.start {
			out[n-1].end = max(out[n-1].end, s.end)
			continue
		}
		out = append(out, s)
	}
	return out
}
