package task

import (
	"fmt"
	"slices"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/errs"
)

// StepKind is one way to grow the process tree.
type StepKind int

// The steps. A process is always named by its pid in the container.
const (
	// StepFork: PID is born from Parent.
	StepFork StepKind = iota
	// StepSetsid: PID leads a new session.
	StepSetsid
	// StepSetpgid: PID joins the process group Group; its own number founds one.
	StepSetpgid
	// StepExit: PID, a helper that is not in the image, ends; its children go
	// to the nearest subreaper or to init. Parent takes its exit status.
	StepExit
	// StepSubreaper: PID becomes a child subreaper.
	StepSubreaper
)

// Step is one step of growing the tree.
type Step struct {
	Kind   StepKind
	PID    int32
	Parent int32 // of StepFork and StepExit
	Group  int32 // of StepSetpgid
}

// Grow plans how the processes of an image are born from its init: an order of
// forks, setsids and setpgids that ends with every process having the parent,
// session and group it had. Where a session's or a group's leader is dead, a
// helper takes its number for a while; where a process was orphaned, it is born
// from a helper of its session that then ends, as it was in life.
func Grow(processes []*blob.Process) ([]Step, error) {
	g := &grower{
		byPID: map[int32]*blob.Process{}, children: map[int32][]*blob.Process{},
		orphans: map[int32][]*blob.Process{}, taken: map[int32]bool{},
	}
	for _, p := range processes {
		g.byPID[p.Pid] = p
		g.taken[p.Pid], g.taken[p.Sid], g.taken[p.Pgid] = true, true, true
		for _, t := range p.Threads {
			g.taken[t.Tid] = true
		}
	}
	for _, p := range processes {
		if p.Ppid != 0 {
			g.children[p.Ppid] = append(g.children[p.Ppid], p)
		}
	}
	init := g.byPID[1]
	if init == nil {
		return nil, fmt.Errorf("no init: %w", errs.ErrCorrupt)
	}
	if err := g.grow(init, init.Sid); err != nil {
		return nil, err
	}
	if len(g.born) != len(processes)-1 {
		return nil, fmt.Errorf("only %d of %d processes can be reached from init: %w", len(g.born)+1, len(processes), errs.ErrCorrupt)
	}
	g.groups(processes)
	return g.steps, nil
}

type grower struct {
	byPID    map[int32]*blob.Process
	children map[int32][]*blob.Process
	orphans  map[int32][]*blob.Process // by session: adopted from a session that their parent is not in
	taken    map[int32]bool
	born     []int32
	steps    []Step
}

func (g *grower) step(s Step) { g.steps = append(g.steps, s) }

func (g *grower) fork(parent, pid int32) {
	g.step(Step{Kind: StepFork, PID: pid, Parent: parent})
	if g.byPID[pid] != nil {
		g.born = append(g.born, pid)
	}
}

// grow gives p, which was born into session inherited, its session, and then
// its children.
func (g *grower) grow(p *blob.Process, inherited int32) error {
	if p.ChildSubreaper {
		g.step(Step{Kind: StepSubreaper, PID: p.Pid})
	}
	leads := p.Sid == p.Pid && inherited != p.Pid
	before, after, adopted := g.sort(p, inherited)
	for _, c := range before {
		g.fork(p.Pid, c.Pid)
	}
	if leads {
		g.step(Step{Kind: StepSetsid, PID: p.Pid})
	}
	for _, c := range after {
		g.fork(p.Pid, c.Pid)
	}
	for _, c := range before {
		if err := g.grow(c, inherited); err != nil {
			return err
		}
	}
	for _, c := range after {
		if err := g.grow(c, p.Sid); err != nil {
			return err
		}
	}
	if err := g.bearOrphans(p); err != nil {
		return err
	}
	return g.adopt(p, adopted)
}

// sort tells p's children apart: those born before p led its session, those
// born after, and those that p adopted from another session.
func (g *grower) sort(p *blob.Process, inherited int32) (before, after, adopted []*blob.Process) {
	for _, c := range g.children[p.Pid] {
		switch {
		case c.Sid == c.Pid || c.Sid == p.Sid:
			after = append(after, c)
		case c.Sid == inherited:
			before = append(before, c)
		default:
			adopted = append(adopted, c)
		}
	}
	return before, after, adopted
}

// adopt plans for the children that p adopted: now, from a helper that leads
// their dead session, or later, when the session's living leader is there.
func (g *grower) adopt(p *blob.Process, adopted []*blob.Process) error {
	var dead []int32
	for _, c := range adopted {
		if g.byPID[c.Sid] != nil {
			if slices.Contains(g.born, c.Sid) {
				if err := g.bear(g.byPID[c.Sid], c); err != nil {
					return err
				}
				continue
			}
			g.orphans[c.Sid] = append(g.orphans[c.Sid], c)
			continue
		}
		if !slices.Contains(dead, c.Sid) {
			dead = append(dead, c.Sid)
		}
	}
	for _, sid := range dead {
		if sid == 0 {
			return fmt.Errorf("pid %d: a child is in a session from outside the container: %w", p.Pid, errs.ErrUnsupported)
		}
		g.fork(p.Pid, sid)
		g.step(Step{Kind: StepSetsid, PID: sid})
		for _, c := range adopted {
			if c.Sid == sid {
				g.fork(sid, c.Pid)
			}
		}
		g.step(Step{Kind: StepExit, PID: sid, Parent: p.Pid})
		for _, c := range adopted {
			if c.Sid == sid {
				if err := g.grow(c, sid); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// bearOrphans bears those that wait for p's session.
func (g *grower) bearOrphans(p *blob.Process) error {
	if p.Sid != p.Pid {
		return nil
	}
	for _, c := range g.orphans[p.Pid] {
		if err := g.bear(p, c); err != nil {
			return err
		}
	}
	delete(g.orphans, p.Pid)
	return nil
}

// bear has orphan born from a helper of leader's session; the helper ends.
func (g *grower) bear(leader, orphan *blob.Process) error {
	if got := g.reaper(leader); got != orphan.Ppid {
		return fmt.Errorf("pid %d of session %d is a child of %d, but orphans of that session go to %d: %w",
			orphan.Pid, leader.Pid, orphan.Ppid, got, errs.ErrUnsupported)
	}
	helper := g.free()
	g.fork(leader.Pid, helper)
	g.fork(helper, orphan.Pid)
	g.step(Step{Kind: StepExit, PID: helper, Parent: leader.Pid})
	return g.grow(orphan, leader.Sid)
}

// reaper is who adopts the orphans of p's descendants.
func (g *grower) reaper(p *blob.Process) int32 {
	for p != nil && p.Pid != 1 {
		if p.ChildSubreaper {
			return p.Pid
		}
		p = g.byPID[p.Ppid]
	}
	return 1
}

// free returns a pid that nothing in the image uses.
func (g *grower) free() int32 {
	for pid := int32(2); ; pid++ {
		if !g.taken[pid] {
			g.taken[pid] = true
			return pid
		}
	}
}

// groups plans the process groups: the living leaders found theirs, helpers
// found those whose leader is dead, then everyone joins.
func (g *grower) groups(processes []*blob.Process) {
	for _, p := range processes {
		if p.Pgid == p.Pid && p.Sid != p.Pid {
			g.step(Step{Kind: StepSetpgid, PID: p.Pid, Group: p.Pid})
		}
	}
	var helpers []Step
	for _, p := range processes {
		if p.Pgid == 0 || g.byPID[p.Pgid] != nil || slices.ContainsFunc(helpers, func(s Step) bool { return s.PID == p.Pgid }) {
			continue
		}
		g.fork(p.Pid, p.Pgid)
		g.step(Step{Kind: StepSetpgid, PID: p.Pgid, Group: p.Pgid})
		helpers = append(helpers, Step{Kind: StepExit, PID: p.Pgid, Parent: p.Pid})
	}
	for _, p := range processes {
		if p.Pgid != p.Pid && p.Pgid != 0 {
			g.step(Step{Kind: StepSetpgid, PID: p.Pid, Group: p.Pgid})
		}
	}
	g.steps = append(g.steps, helpers...)
}
