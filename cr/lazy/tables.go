package lazy

import (
	"fmt"

	"github.com/stasis-cr/stasis/cr/sys"
)

// tables are those of all address spaces, in the order of their numbers; nil for
// one that is given up.
type tables []*Table

func tablesOf(p *Plan) tables {
	var ts tables
	for _, s := range p.Spaces {
		if s.Gone {
			ts = append(ts, nil)
			continue
		}
		ts = append(ts, NewTable(s.Pieces))
	}
	return ts
}

// apply does to a table what a change says. It says whether anything changed,
// which is what the journal must keep. A fork adds the child's table at the end.
func (ts *tables) apply(c change) (changed bool, err error) {
	if int(c.space) >= len(*ts) {
		return false, fmt.Errorf("event %#x of address space %d of %d", c.Event, c.space, len(*ts))
	}
	t := (*ts)[c.space]
	if t == nil {
		return false, nil
	}
	switch c.Event {
	case sys.UFFDRemove, sys.UFFDUnmap, eventDone:
		return t.Remove(c.Start, c.End), nil
	case sys.UFFDRemap:
		return t.Move(c.Start, c.To, c.Size), nil
	case sys.UFFDFork:
		*ts = append(*ts, t.Clone())
		return true, nil
	case eventGone:
		(*ts)[c.space] = nil
		return true, nil
	}
	return false, fmt.Errorf("event %#x of address space %d is unknown", c.Event, c.space)
}

// replay does all that a journal holds. A child's table is there only if its
// userfaultfd has reached the guard, which has children of them: with one less
// it is lost, and what it would have read can't be served.
func replay(p *Plan, j *Journal, have int) (tables, error) {
	ts := tablesOf(p)
	list, left, err := j.changes()
	if err != nil {
		return nil, err
	}
	for _, c := range list {
		if _, err := ts.apply(c); err != nil {
			return nil, err
		}
	}
	if left != nil {
		if left.Event == sys.UFFDFork && have <= len(ts) {
			return nil, fmt.Errorf("the server died between a fork and its report: the memory of a child can't be served")
		}
		changed, err := ts.apply(*left)
		if err != nil {
			return nil, err
		}
		if changed {
			j.keep()
		} else {
			j.drop()
		}
	}
	if len(ts) > have {
		return nil, fmt.Errorf("%d address spaces are known, and %d userfaultfds", len(ts), have)
	}
	return ts, nil
}
