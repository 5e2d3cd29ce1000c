package lazy

import (
	"errors"
	"slices"
	"testing"

	"github.com/stasis-cr/stasis/cr/sys"
)

func remap(from, to, size uint64) change {
	return change{UFFDMsg: sys.UFFDMsg{Event: sys.UFFDRemap, Start: from * page, To: to * page, Size: size * page}}
}

func unmap(start, end uint64) change {
	return change{UFFDMsg: sys.UFFDMsg{Event: sys.UFFDUnmap, Start: start * page, End: end * page}}
}

func done(start, end uint64) change {
	return change{UFFDMsg: sys.UFFDMsg{Event: eventDone, Start: start * page, End: end * page}}
}

func calm(c change) change {
	c.calm = true
	return c
}

// TestOutOfOrder: events of several threads, told in another order than they
// happened. Address space 0 begins with chunk 1 at page 0 and chunk 2 at 100, ten
// pages each, and five of chunk 3 at 200.
func TestOutOfOrder(t *testing.T) {
	fork := change{UFFDMsg: sys.UFFDMsg{Event: sys.UFFDFork}}
	for name, tc := range map[string]struct {
		do   []change
		want []Piece // of the last book
		err  error
	}{
		"in order": {
			[]change{remap(0, 50, 10), remap(100, 0, 10)},
			[]Piece{p(0, 10, 2, 0), p(50, 60, 1, 0)},
			nil,
		},
		"the move away is told last": {
			[]change{remap(100, 0, 10), remap(0, 50, 10)},
			[]Piece{p(0, 10, 2, 0), p(50, 60, 1, 0)},
			nil,
		},
		"and other memory has come by then": {
			[]change{remap(100, 0, 10), remap(0, 50, 10), remap(200, 0, 10)},
			nil, errAmbiguous,
		},
		"two moves away are owed": {
			[]change{remap(100, 0, 10), remap(200, 0, 10)},
			nil, errAmbiguous,
		},
		"a place is used again and again in order": {
			[]change{remap(0, 50, 10), remap(100, 0, 10), remap(0, 70, 10), remap(200, 0, 5), remap(0, 90, 5)},
			[]Piece{p(50, 60, 1, 0), p(70, 80, 2, 0), p(90, 95, 3, 0)},
			nil,
		},
		"nothing was to come there": {
			[]change{done(0, 10), remap(100, 0, 10), remap(0, 50, 10)},
			[]Piece{p(0, 10, 2, 0)},
			nil,
		},
		"the unmap is told last": {
			[]change{remap(100, 0, 10), unmap(0, 10)},
			[]Piece{p(0, 10, 2, 0)},
			nil,
		},
		"the unmap of memory that was there is told last": {
			[]change{done(0, 10), remap(100, 0, 10), unmap(0, 10)},
			[]Piece{p(0, 10, 2, 0)},
			nil,
		},
		"the unmap is told last, of more than that": {
			[]change{remap(100, 3, 4), unmap(0, 8)},
			[]Piece{p(3, 7, 2, 0), p(8, 10, 1, 8), p(104, 110, 2, 4)},
			nil,
		},
		"the echo of a move comes when other memory is there": {
			[]change{remap(0, 50, 10), remap(100, 0, 10), unmap(0, 10), unmap(100, 110)},
			[]Piece{p(0, 10, 2, 0), p(50, 60, 1, 0)},
			nil,
		},
		"an unmap and an echo": {
			[]change{remap(0, 50, 10), remap(100, 0, 10), unmap(0, 10), unmap(0, 10)},
			[]Piece{p(50, 60, 1, 0)},
			nil,
		},
		"an unmap of what has come": {
			[]change{calm(remap(0, 50, 10)), unmap(50, 60)},
			[]Piece{p(100, 110, 2, 0)},
			nil,
		},
		"calm forgets": {
			[]change{remap(100, 0, 10), calm(remap(0, 50, 10))},
			[]Piece{p(50, 60, 2, 0)},
			nil,
		},
		"a child that may have been born after a move": {
			[]change{fork, remap(0, 50, 10)},
			[]Piece{p(0, 10, 1, 0), p(50, 60, 1, 0), p(100, 110, 2, 0)},
			nil,
		},
		"a child that was born before": {
			[]change{fork, calm(remap(0, 50, 10))},
			[]Piece{p(0, 10, 1, 0), p(100, 110, 2, 0)},
			nil,
		},
	} {
		all := []Piece{p(0, 10, 1, 0), p(100, 110, 2, 0), p(200, 205, 3, 0)}
		ts := tables{newBook(all, all)}
		var err error
		for _, c := range tc.do {
			if _, e := ts.apply(c); e != nil {
				err = e
			}
		}
		if !errors.Is(err, tc.err) {
			t.Errorf("%s: %v, want %v", name, err, tc.err)
		}
		got := slices.DeleteFunc(ts[len(ts)-1].table.Pieces(), func(x Piece) bool { return x == p(200, 205, 3, 0) })
		if err == nil && !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
}
