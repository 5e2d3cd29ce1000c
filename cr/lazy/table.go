package lazy

import (
	"cmp"
	"slices"
	"sort"

	"github.com/stasis-cr/stasis/cr/mem"
)

// Piece is a run of pages that are still to come: the pages of a chunk of the
// store from Page on belong at [Start, End).
type Piece struct {
	Start, End  uint64
	Chunk, Page uint32
}

// cut is the part of p in [start, end), which p overlaps.
func (p Piece) cut(start, end uint64) Piece {
	s, e := max(p.Start, start), min(p.End, end)
	return Piece{s, e, p.Chunk, p.Page + uint32((s-p.Start)/mem.PageSize)}
}

// Table says for an address space which pages are still to come. A page of
// watched memory that is not in it is zero. The zero value is empty. Addresses
// are page aligned; ranges do not wrap.
type Table struct {
	// runs ascend and do not overlap. One that is used up stays, empty, so that
	// to take a page away moves nothing; they are swept now and then.
	runs  []Piece
	empty int
}

// NewTable returns a table of pieces that do not overlap.
func NewTable(pieces []Piece) *Table {
	t := &Table{runs: slices.Clone(pieces)}
	t.sweep()
	return t
}

// Clone returns a copy: what a child gets of its parent's.
func (t *Table) Clone() *Table { return &Table{slices.Clone(t.runs), t.empty} }

// first is the index of the first run that ends behind addr.
func (t *Table) first(addr uint64) int {
	return sort.Search(len(t.runs), func(i int) bool { return t.runs[i].End > addr })
}

// Next returns what is still to come from addr on, up to the end of one run.
func (t *Table) Next(addr uint64) (Piece, bool) {
	for i := t.first(addr); i < len(t.runs); i++ {
		if r := t.runs[i]; r.Start < r.End {
			return r.cut(addr, r.End), true
		}
	}
	return Piece{}, false
}

// At returns the run around the page at addr.
func (t *Table) At(addr uint64) (Piece, bool) {
	i := t.first(addr)
	if i == len(t.runs) || t.runs[i].Start > addr {
		return Piece{}, false
	}
	return t.runs[i], true
}

// Between returns what is still to come in [start, end).
func (t *Table) Between(start, end uint64) []Piece {
	var out []Piece
	for i := t.first(start); i < len(t.runs) && t.runs[i].Start < end; i++ {
		if r := t.runs[i]; r.Start < r.End {
			out = append(out, r.cut(start, end))
		}
	}
	return out
}

// Pieces returns all that is still to come.
func (t *Table) Pieces() []Piece { return t.Between(0, ^uint64(0)) }

// Empty says that nothing is.
func (t *Table) Empty() bool { return t.empty == len(t.runs) }

// Remove forgets [start, end): it is there, or is none of the program's any
// more. It says whether there was anything.
func (t *Table) Remove(start, end uint64) (changed bool) {
	for i := t.first(start); i < len(t.runs) && t.runs[i].Start < end; i++ {
		r := &t.runs[i]
		if r.Start == r.End {
			continue
		}
		changed = true
		gone := r.cut(start, end)
		rest := r.cut(gone.End, r.End)
		switch {
		case gone == *r:
			r.End = r.Start
			t.empty++
		case gone.Start == r.Start:
			*r = rest
		default:
			r.End = gone.Start
			if rest.Start < rest.End {
				t.runs = slices.Insert(t.runs, i+1, rest)
			}
		}
	}
	if t.empty > len(t.runs)/2 {
		t.sweep()
	}
	return changed
}

// put adds pieces where there is nothing; what is there stays.
func (t *Table) put(pieces []Piece) {
	if len(pieces) == 0 {
		return
	}
	// The pieces do not overlap each other, so what is there is looked up before
	// any of them is added.
	have := &Table{slices.Clip(t.runs), t.empty}
	for _, p := range pieces {
		at := p.Start
		for _, h := range have.Between(p.Start, p.End) {
			t.runs = append(t.runs, p.cut(at, h.Start))
			at = h.End
		}
		t.runs = append(t.runs, p.cut(at, p.End))
	}
	t.sweep()
}

// sweep sorts the runs and drops the empty ones.
func (t *Table) sweep() {
	t.runs = slices.DeleteFunc(t.runs, func(p Piece) bool { return p.Start >= p.End })
	slices.SortFunc(t.runs, func(a, b Piece) int { return cmp.Compare(a.Start, b.Start) })
	t.empty = 0
}
