package mem

import (
	"slices"
	"sort"

	"github.com/stasis-cr/stasis/cr/blob"
)

// Inheritance is what a process gets from its parent by being forked when the
// parent's memory is complete, and what it then lacks. What both have stays
// physically shared, copy-on-write, as it was.
type Inheritance struct {
	Kept  []*blob.VMA    // mappings of the parent that the child needs
	Held  []*blob.VMA    // the child's mappings that come with them: all or a part of each
	Fresh []*blob.VMA    // its other mappings, to be made
	Want  []*blob.Extent // pages to be written, in both kinds
	Drop  []Region       // pages that come from the parent and are none of the child's
	Huge  []*blob.Huge   // huge pages to be made
}

// Inherit plans what child is to get from parent; nil if they share nothing. It
// trusts no claim of the image: pages are shared if both sides name the same place
// in the page store, so they are the same whatever is there.
//
// A mapping comes along if it lies within one of the parent's that has the same
// properties, and if at least as many pages are shared as there are runs of pages to
// be written or given back: else copies are cheaper. (A fork that a mapping grew after
// shows two in its maps: the kernel does not merge what is inherited, see
// vma_is_fork_child in mm/vma.c.)
func Inherit(parent, child *blob.MM) *Inheritance {
	in := &Inheritance{}
	for _, v := range child.Vmas {
		p := holder(parent.Vmas, v)
		if p == nil || !in.hold(parent, child, v) {
			in.Fresh = append(in.Fresh, v)
			in.Want = append(in.Want, within(child.Extents, v.Start, v.End)...)
			in.Huge = append(in.Huge, hugeIn(child.Huge, v.Start, v.End)...)
			continue
		}
		in.Held = append(in.Held, v)
		if n := len(in.Kept); n == 0 || in.Kept[n-1] != p {
			in.Kept = append(in.Kept, p)
		}
	}
	if len(in.Held) == 0 {
		return nil
	}
	return in
}

// Flags of a mapping that are given after its memory is complete, so that they
// don't matter here; and those with which a fork does not copy it.
const (
	lateFlags = uint64(blob.VMAFlag_VMA_LOCKED | blob.VMAFlag_VMA_LOCKONFAULT | blob.VMAFlag_VMA_SEALED)
	ownFlags  = uint64(blob.VMAFlag_VMA_DONTCOPY | blob.VMAFlag_VMA_WIPEONFORK | blob.VMAFlag_VMA_HUGETLB)
)

// holder finds the mapping among vmas, ascending, that v can be all or a part of.
func holder(vmas []*blob.VMA, v *blob.VMA) *blob.VMA {
	i := sort.Search(len(vmas), func(i int) bool { return vmas[i].End > v.Start })
	if i == len(vmas) {
		return nil
	}
	p := vmas[i]
	switch {
	case v.Kind != blob.VMA_ANON && v.Kind != blob.VMA_FILE, v.Shared:
		return nil
	case p.Start > v.Start || p.End < v.End || p.Kind != v.Kind || p.Shared || p.Prot != v.Prot:
		return nil
	case (p.Flags^v.Flags)&^lateFlags != 0 || p.Flags&ownFlags != 0:
		return nil
	case p.File != v.File || v.Kind == blob.VMA_FILE && p.Offset+(v.Start-p.Start) != v.Offset:
		return nil
	}
	return p
}

// hold plans for the pages of v, which the parent maps too. It is false, and
// nothing is planned, if too few are shared. Each run of the parent's has a page
// that is shared or has to be given back, so that many runs and few pages need not
// be compared.
func (in *Inheritance) hold(parent, child *blob.MM, v *blob.VMA) bool {
	from, to := indexes(parent.Extents, v.Start, v.End)
	if n, _ := bytesWithin(within(child.Extents, v.Start, v.End), v.Start, v.End); uint64(to-from) > n/PageSize {
		return false
	}
	var d difference
	at := v.Start
	for _, h := range hugeIn(child.Huge, v.Start, v.End) {
		for start := h.Start; start < h.Start+uint64(h.Count)*HugeSize; start += HugeSize {
			d.compare(parent, child, at, start)
			at = start + HugeSize
			d.compareHuge(parent, child, start)
		}
	}
	d.compare(parent, child, at, v.End)
	if d.shared == 0 || d.shared/PageSize < uint64(len(d.want)+len(d.drop)) {
		return false
	}
	in.Want = append(in.Want, d.want...)
	in.Drop = append(in.Drop, d.drop...)
	in.Huge = append(in.Huge, d.huge...)
	return true
}

// difference collects what is not the same in a child and its parent.
type difference struct {
	want   []*blob.Extent
	drop   []Region
	huge   []*blob.Huge
	shared uint64 // bytes
}

// compareHuge compares one huge page of the child. It is shared as a whole, or
// made anew: a write to a part would split it.
func (d *difference) compareHuge(parent, child *blob.MM, start uint64) {
	end := start + HugeSize
	var one difference
	one.compare(parent, child, start, end)
	if len(one.want) == 0 && len(one.drop) == 0 && len(hugeIn(parent.Huge, start, end)) > 0 {
		d.shared += one.shared
		return
	}
	d.want = append(d.want, within(child.Extents, start, end)...)
	d.drop = append(d.drop, Region{start, end})
	d.huge = append(d.huge, &blob.Huge{Start: start, Count: 1})
}

// compare compares the pages of a range, piece by piece.
func (d *difference) compare(parent, child *blob.MM, start, end uint64) {
	theirs, ours := within(parent.Extents, start, end), within(child.Extents, start, end)
	for len(theirs) > 0 || len(ours) > 0 {
		switch {
		case len(ours) == 0 || len(theirs) > 0 && theirs[0].Start < ours[0].Start:
			stop := end
			if len(ours) > 0 {
				stop = ours[0].Start
			}
			var part *blob.Extent
			part, theirs = cut(theirs, stop)
			from, to := bounds(part)
			d.drop = append(d.drop, Region{from, to})
		case len(theirs) == 0 || ours[0].Start < theirs[0].Start:
			stop := end
			if len(theirs) > 0 {
				stop = theirs[0].Start
			}
			var part *blob.Extent
			part, ours = cut(ours, stop)
			d.want = append(d.want, part)
		default:
			_, a := bounds(theirs[0])
			_, b := bounds(ours[0])
			var their, our *blob.Extent
			their, theirs = cut(theirs, min(a, b))
			our, ours = cut(ours, min(a, b))
			if their.Chunk == our.Chunk && their.Page == our.Page {
				d.shared += uint64(our.Pages) * PageSize
			} else {
				d.want = append(d.want, our)
			}
		}
	}
}

// cut takes what the first of list has before stop, which is behind its start.
func cut(list []*blob.Extent, stop uint64) (part *blob.Extent, rest []*blob.Extent) {
	e := list[0]
	from, to := bounds(e)
	if to <= stop {
		return e, list[1:]
	}
	n := uint32((stop - from) / PageSize)
	list[0] = &blob.Extent{Start: stop, Pages: e.Pages - n, Chunk: e.Chunk, Page: e.Page + n}
	return &blob.Extent{Start: from, Pages: n, Chunk: e.Chunk, Page: e.Page}, list
}

// indexes says which of extents, ascending, have pages in a range.
func indexes(extents []*blob.Extent, start, end uint64) (from, to int) {
	from = sort.Search(len(extents), func(i int) bool {
		_, to := bounds(extents[i])
		return to > start
	})
	return from, from + sort.Search(len(extents)-from, func(n int) bool { return extents[from+n].Start >= end })
}

// within returns what extents, ascending, have in a range. The slice is new, the
// extents are those of the list where they are not cut.
func within(extents []*blob.Extent, start, end uint64) []*blob.Extent {
	i, n := indexes(extents, start, end)
	if start >= end || i == n {
		return nil
	}
	out := slices.Clone(extents[i:n])
	if out[0].Start < start {
		_, out = cut(out, start)
	}
	if _, to := bounds(out[len(out)-1]); to > end {
		out[len(out)-1], _ = cut(slices.Clone(out[len(out)-1:]), end)
	}
	return out
}

// hugeIn returns the huge pages of list, ascending, that lie in a range as a
// whole.
func hugeIn(list []*blob.Huge, start, end uint64) []*blob.Huge {
	start, end = (start+HugeSize-1)&^(HugeSize-1), end&^(HugeSize-1)
	var out []*blob.Huge
	i := sort.Search(len(list), func(i int) bool { return list[i].Start+uint64(list[i].Count)*HugeSize > start })
	for ; i < len(list) && list[i].Start < end; i++ {
		from := max(list[i].Start, start)
		to := min(list[i].Start+uint64(list[i].Count)*HugeSize, end)
		if from < to {
			out = append(out, &blob.Huge{Start: from, Count: uint32((to - from) / HugeSize)})
		}
	}
	return out
}

// Unforked lists the mappings of mm whose page tables a fork would copy, but for
// those that are kept. What has a flag of its own that fork heeds is not touched,
// nor is memory of the pool: the kernel does not let its advice be taken back
// (madvise_vma_behavior in mm/madvise.c, VM_SPECIAL).
func Unforked(mm *blob.MM, kept []Region) []Region {
	var out []Region
	for _, v := range mm.Vmas {
		r := Region{v.Start, v.End}
		switch {
		case v.Shared, v.Kind != blob.VMA_ANON && v.Kind != blob.VMA_FILE, v.Flags&ownFlags != 0:
		case slices.Contains(kept, r) || empty(mm.Extents, v):
		default:
			out = append(out, r)
		}
	}
	return out
}

func empty(extents []*blob.Extent, v *blob.VMA) bool {
	from, to := indexes(extents, v.Start, v.End)
	return from == to
}

// Subtract returns what r has that none of holes, ascending and disjoint, holds.
func Subtract(r Region, holes []Region) []Region {
	var out []Region
	for _, h := range holes {
		if h.End <= r.Start || h.Start >= r.End {
			continue
		}
		if h.Start > r.Start {
			out = append(out, Region{r.Start, h.Start})
		}
		r.Start = h.End
		if r.Start >= r.End {
			return out
		}
	}
	return append(out, r)
}
