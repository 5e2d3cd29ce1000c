package remote

import (
	"errors"
	"iter"
)

// Idle is called by who waits for a task that runs, in a [Visit] or for one that is
// [Owned]: others go on meanwhile. It says whether there were any when it was called.
type Idle func() bool

// Together does n pieces of work, most of them at a time, on the calling OS thread:
// it must be one that traces tasks. Each is begun in its turn, when ready says that
// it can be, or when nothing else is left to do. Where one calls idle, as a visit
// does whose [VisitOptions] have it, and a call in a task that was given it by
// [Owned.Idle], the others go on. A task takes ten times as long
// to wake up and to come to rest again as the calls that it makes; these waits
// overlap then.
//
// After a failure no more is begun, and what has been begun is ended: a visit is
// never left half made. Errors of all pieces are joined.
func Together(n, most int, ready func(i int) bool, work func(i int, idle Idle) error) error {
	var going []*piece
	var all error
	idle := func(yield func(struct{}) bool) Idle {
		return func() bool {
			others := len(going) > 1
			return yield(struct{}{}) && others
		}
	}
	for next := 0; next < n && all == nil || len(going) > 0; {
		if next < n && len(going) < most && all == nil && (len(going) == 0 || ready(next)) {
			going = append(going, begin(next, idle, work))
			next++
		}
		still := make([]*piece, 0, len(going))
		for _, p := range going {
			if p.goOn() {
				still = append(still, p)
			} else {
				all = errors.Join(all, p.err)
			}
		}
		going = still
	}
	return all
}

// piece is a piece of work: a coroutine, which stays on its thread.
type piece struct {
	next func() (struct{}, bool)
	err  error
}

func begin(i int, idle func(func(struct{}) bool) Idle, work func(int, Idle) error) *piece {
	p := &piece{}
	p.next, _ = iter.Pull(func(yield func(struct{}) bool) { p.err = work(i, idle(yield)) })
	return p
}

// goOn runs the piece up to its next idling, and says whether it has more to do.
func (p *piece) goOn() bool {
	_, more := p.next()
	return more
}
