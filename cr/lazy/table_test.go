package lazy

import (
	"maps"
	"slices"
	"testing"

	"github.com/stasis-cr/stasis/cr/mem"
)

const page = mem.PageSize

// p is a piece of pages [from, to) that are those of chunk c from page on.
func p(from, to uint64, c, at uint32) Piece { return Piece{from * page, to * page, c, at} }

// move does to a table what one thread's mremap does.
func move(t *Table, from, to, size uint64) bool {
	b := &book{table: t, mapped: &Table{}, orphans: &Table{}}
	left := b.leave(from, from+size)
	return b.come(shifted(left, from, to), to, size) == nil && len(left) > 0
}

func TestTable(t *testing.T) {
	for name, tc := range map[string]struct {
		do   func(*Table) bool
		want []Piece
	}{
		"remove nothing":    {func(t *Table) bool { return !t.Remove(20*page, 30*page) }, []Piece{p(0, 10, 1, 0), p(40, 50, 2, 5)}},
		"remove a run":      {func(t *Table) bool { return t.Remove(0, 10*page) }, []Piece{p(40, 50, 2, 5)}},
		"remove a head":     {func(t *Table) bool { return t.Remove(0, 3*page) }, []Piece{p(3, 10, 1, 3), p(40, 50, 2, 5)}},
		"remove a tail":     {func(t *Table) bool { return t.Remove(8*page, 20*page) }, []Piece{p(0, 8, 1, 0), p(40, 50, 2, 5)}},
		"remove a middle":   {func(t *Table) bool { return t.Remove(4*page, 5*page) }, []Piece{p(0, 4, 1, 0), p(5, 10, 1, 5), p(40, 50, 2, 5)}},
		"remove across":     {func(t *Table) bool { return t.Remove(9*page, 41*page) }, []Piece{p(0, 9, 1, 0), p(41, 50, 2, 6)}},
		"remove all":        {func(t *Table) bool { return t.Remove(0, 1<<40) && t.Empty() }, nil},
		"move a run":        {func(t *Table) bool { return move(t, 0, 20*page, 10*page) }, []Piece{p(20, 30, 1, 0), p(40, 50, 2, 5)}},
		"move a part":       {func(t *Table) bool { return move(t, 2*page, 90*page, 3*page) }, []Piece{p(0, 2, 1, 0), p(5, 10, 1, 5), p(40, 50, 2, 5), p(90, 93, 1, 2)}},
		"move down":         {func(t *Table) bool { return move(t, 40*page, 20*page, 10*page) }, []Piece{p(0, 10, 1, 0), p(20, 30, 2, 5)}},
		"move nothing":      {func(t *Table) bool { return !move(t, 60*page, 90*page, 3*page) }, []Piece{p(0, 10, 1, 0), p(40, 50, 2, 5)}},
		"move onto another": {func(t *Table) bool { return move(t, 0, 38*page, 10*page) }, []Piece{p(38, 48, 1, 0), p(48, 50, 2, 13)}},
	} {
		tab := NewTable([]Piece{p(40, 50, 2, 5), p(0, 10, 1, 0)})
		other := tab.Clone()
		if !tc.do(tab) {
			t.Errorf("%s: wrong answer", name)
		}
		if got := tab.Pieces(); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
		if got := other.Pieces(); !slices.Equal(got, []Piece{p(0, 10, 1, 0), p(40, 50, 2, 5)}) {
			t.Errorf("%s: the clone changed: %v", name, got)
		}
	}
}

func TestTableLookups(t *testing.T) {
	tab := NewTable([]Piece{p(2, 10, 1, 0), p(40, 50, 2, 5)})
	tab.Remove(2*page, 4*page)
	if got, ok := tab.At(5 * page); !ok || got != p(4, 10, 1, 2) {
		t.Errorf("at 5: %v %v", got, ok)
	}
	for _, at := range []uint64{0, 3, 10, 39, 50} {
		if got, ok := tab.At(at * page); ok {
			t.Errorf("at %d: %v", at, got)
		}
	}
	if got, ok := tab.Next(6 * page); !ok || got != p(6, 10, 1, 4) {
		t.Errorf("from 6: %v %v", got, ok)
	}
	if got, ok := tab.Next(10 * page); !ok || got != p(40, 50, 2, 5) {
		t.Errorf("from 10: %v %v", got, ok)
	}
	if got, ok := tab.Next(50 * page); ok {
		t.Errorf("from 50: %v", got)
	}
}

// source is where a page comes from, in the model of a table: a map of pages.
type source struct{ chunk, page uint32 }

type model map[uint64]source

func (m model) remove(start, end uint64) {
	for a := start; a < end; a += page {
		delete(m, a)
	}
}

func (m model) move(from, to, size uint64) {
	moved := model{}
	for a := from; a < from+size; a += page {
		if s, ok := m[a]; ok {
			moved[a-from+to] = s
			delete(m, a)
		}
	}
	m.remove(to, to+size)
	maps.Copy(m, moved)
}

func (m model) check(t *testing.T, tab *Table) {
	t.Helper()
	n, last := 0, uint64(0)
	for _, p := range tab.Pieces() {
		if p.Start < last || p.Start >= p.End {
			t.Fatalf("runs out of order: %v", tab.Pieces())
		}
		last = p.End
		for a, at := p.Start, p.Page; a < p.End; a, at = a+page, at+1 {
			n++
			if m[a] != (source{p.Chunk, at}) {
				t.Fatalf("page %#x is %v, want %v", a, source{p.Chunk, at}, m[a])
			}
		}
	}
	if n != len(m) || tab.Empty() != (n == 0) {
		t.Fatalf("%d pages, want %d; empty %v", n, len(m), tab.Empty())
	}
}

// FuzzTable compares a table with a map of pages under any sequence of changes.
func FuzzTable(f *testing.F) {
	f.Add([]byte{0, 3, 1, 1, 4, 9, 2, 60, 5, 0, 0, 255})
	f.Add([]byte{1, 0, 40, 1, 80, 8, 1, 40, 0, 0, 41, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		tab, m := NewTable([]Piece{p(0, 32, 1, 0), p(64, 96, 2, 7), p(96, 128, 3, 0)}), model{}
		for _, p := range tab.Pieces() {
			for a, at := p.Start, p.Page; a < p.End; a, at = a+page, at+1 {
				m[a] = source{p.Chunk, at}
			}
		}
		for len(b) >= 3 {
			x, y := uint64(b[1])*page, uint64(b[2])*page
			if b[0]&1 == 0 {
				tab.Remove(x, x+y)
				m.remove(x, x+y)
			} else if size := uint64(b[0]>>1) * page; x+size <= y || y+size <= x { // as mremap has it
				move(tab, x, y, size)
				m.move(x, y, size)
			}
			b = b[3:]
			m.check(t, tab)
		}
	})
}
