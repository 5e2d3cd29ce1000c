package lazy

import (
	"errors"
	"fmt"
	"slices"

	"github.com/stasis-cr/stasis/cr/sys"
)

// book is all that is known of one address space.
//
// A thread tells of what it did only after it has let go of the lock on the
// mappings (mremap and munmap queue their events behind mmap_write_unlock), so
// events of several threads may come in another order than they happened: that
// memory has come to a place may be told before that other memory has left it.
// The book knows what is mapped, so it sees that a departure is owed. Who did it
// waits until its event is read, so this ends as soon as the kernel lets us copy
// again: then nothing is outstanding, and the book is calm.
type book struct {
	table  *Table
	mapped *Table // what is watched; chunk and page mean nothing

	owed    []extent // places that memory has come to before what was there was told to have left
	orphans *Table   // what is to come of the latter
	settled []extent // owed departures that have been told of since
	echoes  []extent // what was moved away, of which the kernel tells once more: it unmaps the old place
	twins   []uint32 // children that were born: what is told later may have happened before their birth
}

type extent struct{ start, end uint64 }

func newBook(pieces, watched []Piece) *book {
	return &book{table: NewTable(pieces), mapped: NewTable(watched), orphans: &Table{}}
}

// calm forgets what is only kept for events that are outstanding.
func (b *book) calm() {
	b.orphans, b.owed, b.settled, b.echoes, b.twins = &Table{}, nil, nil, nil, nil
}

func (b *book) isCalm() bool { return len(b.owed)+len(b.settled)+len(b.echoes)+len(b.twins) == 0 }

// echo says whether an unmap is the one that ends a move (unmap_source_vma in
// mm/mremap.c tells of it after the move): other memory may have come there since.
// Should it be another's after all, its own echo takes its place.
func (b *book) echo(start, end uint64) bool {
	i := slices.Index(b.echoes, extent{start, end})
	if i < 0 {
		return false
	}
	b.echoes = slices.Delete(b.echoes, i, i+1)
	return true
}

func overlaps(list []extent, start, end uint64) (parts []extent) {
	for _, x := range list {
		if s, e := max(x.start, start), min(x.end, end); s < e {
			parts = append(parts, extent{s, e})
		}
	}
	return parts
}

func without(list []extent, start, end uint64) (rest []extent) {
	for _, x := range list {
		if s := (extent{x.start, min(x.end, start)}); s.start < s.end {
			rest = append(rest, s)
		}
		if e := (extent{max(x.start, end), x.end}); e.start < e.end {
			rest = append(rest, e)
		}
	}
	return rest
}

var errAmbiguous = errors.New("its threads move memory so fast that nobody can tell what is where")

// doubtful are the parts of a range that is left where a departure is owed: it is
// taken for that one if what has come there since is there still.
func (b *book) doubtful(start, end uint64) []extent { return overlaps(b.owed, start, end) }

// leave takes out what leaves [start, end).
func (b *book) leave(start, end uint64) []Piece {
	var left []Piece
	rest := []extent{{start, end}}
	for _, o := range b.doubtful(start, end) {
		left = append(left, b.orphans.Between(o.start, o.end)...)
		b.orphans.Remove(o.start, o.end)
		b.owed = without(b.owed, o.start, o.end)
		b.settled = append(b.settled, o)
		rest = without(rest, o.start, o.end)
	}
	for _, r := range rest {
		left = append(left, b.table.Between(r.start, r.end)...)
		b.table.Remove(r.start, r.end)
		b.mapped.Remove(r.start, r.end)
	}
	return left
}

// come puts what comes to [to, to+size). A second departure from one place that
// is owed, or one that may have been taken for another, leaves us guessing.
func (b *book) come(pieces []Piece, to, size uint64) error {
	end := to + size
	for _, p := range b.mapped.Between(to, end) {
		if len(overlaps(b.owed, p.Start, p.End))+len(overlaps(b.settled, p.Start, p.End)) > 0 {
			return errAmbiguous
		}
		b.owed = append(b.owed, extent{p.Start, p.End})
		b.orphans.put(b.table.Between(p.Start, p.End))
	}
	b.table.Remove(to, end)
	b.table.put(pieces)
	b.mapped.put([]Piece{{Start: to, End: end}})
	return nil
}

func shifted(pieces []Piece, from, to uint64) []Piece {
	out := make([]Piece, len(pieces))
	for i, p := range pieces {
		out[i] = Piece{p.Start - from + to, p.End - from + to, p.Chunk, p.Page}
	}
	return out
}

// tables are the books of all address spaces, in the order of their numbers; nil
// for one that is given up.
type tables []*book

func tablesOf(p *Plan) tables {
	var ts tables
	for _, s := range p.Spaces {
		if s.Gone {
			ts = append(ts, nil)
			continue
		}
		ts = append(ts, newBook(s.Pieces, s.Watched))
	}
	return ts
}

// table is that of an address space; nil if it is given up.
func (ts tables) table(space uint32) *Table {
	if b := ts[space]; b != nil {
		return b.table
	}
	return nil
}

// apply does to a book what a change says. It says whether anything changed,
// which is what the journal must keep. A fork adds the child's book at the end.
func (ts *tables) apply(c change) (changed bool, err error) {
	if int(c.space) >= len(*ts) {
		return false, fmt.Errorf("event %#x of address space %d of %d", c.Event, c.space, len(*ts))
	}
	b := (*ts)[c.space]
	if b == nil {
		return false, nil
	}
	if c.calm && !b.isCalm() {
		b.calm()
		changed = true
	}
	switch c.Event {
	case eventDone, sys.UFFDRemove:
		return b.table.Remove(c.Start, c.End) || changed, nil
	case sys.UFFDUnmap:
		if b.echo(c.Start, c.End) {
			return true, nil
		}
		watched := len(b.mapped.Between(c.Start, c.End)) > 0
		b.leave(c.Start, c.End)
		return changed || watched, nil
	case sys.UFFDRemap:
		return true, ts.move(b, c)
	case sys.UFFDFork:
		*ts = append(*ts, newBook(b.table.Pieces(), b.mapped.Pieces()))
		b.twins = append(b.twins, uint32(len(*ts)-1))
		return true, nil
	case eventGone:
		(*ts)[c.space] = nil
		return true, nil
	}
	return false, fmt.Errorf("event %#x of address space %d is unknown", c.Event, c.space)
}

// move follows an mremap. A child that was born meanwhile has the memory at one
// place or the other; at the wrong one the kernel has no place for the pages.
func (ts *tables) move(b *book, c change) error {
	for _, id := range b.twins {
		if t := (*ts)[id]; t != nil {
			t.table.put(shifted(t.table.Between(c.Start, c.Start+c.Size), c.Start, c.To))
			t.mapped.put([]Piece{{Start: c.To, End: c.To + c.Size}})
		}
	}
	left := b.leave(c.Start, c.Start+c.Size)
	b.echoes = append(b.echoes, extent{c.Start, c.Start + c.Size})
	return b.come(shifted(left, c.Start, c.To), c.To, c.Size)
}

// replay does all that a journal holds. A child's book is there only if its
// userfaultfd has reached the guard, which has so many: with one less it is lost,
// and what the child would read can't be served. left is what a server that died
// had read and not yet done.
func replay(p *Plan, j *Journal, have int) (ts tables, left *change, err error) {
	ts = tablesOf(p)
	list, left, err := j.changes()
	if err != nil {
		return nil, nil, err
	}
	for _, c := range list {
		if _, err := ts.apply(c); err != nil {
			return nil, nil, err
		}
	}
	if left != nil && left.Event == sys.UFFDFork && have <= len(ts) {
		return nil, nil, errors.New("the server died between a fork and its report: the memory of a child can't be served")
	}
	return ts, left, nil
}
