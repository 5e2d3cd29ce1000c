package task

import (
	"fmt"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/errs"
)

// groups plans the process groups, once all processes are there. Everybody is
// still in the group that was born with its session. The groups besides are
// founded, by their leaders or by helpers with the numbers of dead ones; then
// everyone joins, and the helpers end.
func (g *grower) groups(processes []*blob.Process) error {
	first := map[int32]*blob.Process{} // a member of each group
	var helpers []Step
	for _, p := range processes {
		if p.Pgid == p.Sid {
			continue
		}
		if f := first[p.Pgid]; f != nil {
			if f.Sid != p.Sid {
				return fmt.Errorf("group %d is in sessions %d and %d: %w", p.Pgid, f.Sid, p.Sid, errs.ErrCorrupt)
			}
			continue
		}
		first[p.Pgid] = p
		more, err := g.found(p)
		if err != nil {
			return err
		}
		helpers = append(helpers, more...)
	}
	for _, p := range processes {
		left := first[p.Pid] != nil && p.Pgid != p.Pid // it has founded a group that it is not in
		if (p.Pgid != p.Sid && p.Pgid != p.Pid) || left {
			g.step(Step{Kind: StepSetpgid, PID: p.Pid, Group: p.Pgid})
		}
	}
	g.steps = append(g.steps, helpers...)
	return nil
}

// found founds the group of member, and returns the steps that end its helpers.
func (g *grower) found(member *blob.Process) (helpers []Step, err error) {
	group := member.Pgid
	leader := g.byPID[group]
	switch {
	case group == 0 || g.led[group] || (leader != nil && leader.Sid != member.Sid):
		return nil, fmt.Errorf("pid %d of session %d is in group %d, which is of another session: %w",
			member.Pid, member.Sid, group, errs.ErrCorrupt)
	case leader == nil:
		g.fork(member.Pid, group)
		helpers = []Step{{Kind: StepExit, PID: group, Parent: member.Pid}}
	case leader.Pgid != group:
		// It founded the group and went on to another, or back: helpers stay.
		if leader.Pgid == leader.Sid {
			helpers = append(helpers, g.hold(leader))
		}
		defer func() { helpers = append(helpers, g.hold(leader)) }()
	}
	g.step(Step{Kind: StepSetpgid, PID: group, Group: group})
	return helpers, nil
}

// hold has p bear a helper, which keeps the group that p is in; the step that it
// returns ends it.
func (g *grower) hold(p *blob.Process) Step {
	helper := g.free()
	g.fork(p.Pid, helper)
	return Step{Kind: StepExit, PID: helper, Parent: p.Pid}
}
