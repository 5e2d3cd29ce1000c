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
//
// Init itself is there already, in its session and that session's group. What
// no kernel can have made is ErrCorrupt, what Grow has no order for is
// ErrUnsupported.
func Grow(processes []*blob.Process) ([]Step, error) {
	g, err := newGrower(processes)
	if err != nil {
		return nil, err
	}
	init := g.byPID[1]
	if err := g.plan(init); err != nil {
		return nil, err
	}
	if len(g.birth) != len(processes) {
		return nil, fmt.Errorf("only %d of %d processes descend from init: %w", len(g.birth), len(processes), errs.ErrCorrupt)
	}
	if err := g.grow(init); err != nil {
		return nil, err
	}
	if g.born != len(processes)-1 {
		return nil, fmt.Errorf("%d processes were born in sessions of each other's: %w", len(processes)-1-g.born, errs.ErrUnsupported)
	}
	if err := g.groups(processes); err != nil {
		return nil, err
	}
	return g.steps, nil
}

// anywhere is the session of birth of a process for which any will do.
const anywhere = -1

type grower struct {
	byPID    map[int32]*blob.Process
	children map[int32][]*blob.Process
	birth    map[int32]int32           // the session that a process must be born in
	led      map[int32]bool            // sessions that exist by now, and those that did
	waiting  map[int32][]*blob.Process // orphans of a session whose leader is not there yet
	taken    map[int32]bool            // numbers that helpers must not have
	born     int
	steps    []Step
}

// newGrower indexes the processes and refuses what can't be a family.
func newGrower(processes []*blob.Process) (*grower, error) {
	g := &grower{
		byPID: map[int32]*blob.Process{}, children: map[int32][]*blob.Process{}, birth: map[int32]int32{},
		led: map[int32]bool{}, waiting: map[int32][]*blob.Process{}, taken: map[int32]bool{},
	}
	for _, p := range processes {
		if g.byPID[p.Pid] != nil {
			return nil, fmt.Errorf("pid %d twice: %w", p.Pid, errs.ErrCorrupt)
		}
		g.byPID[p.Pid] = p
		g.taken[p.Pid], g.taken[p.Sid], g.taken[p.Pgid] = true, true, true
		for _, t := range p.Threads {
			g.taken[t.Tid] = true
		}
		if p.Ppid != 0 {
			g.children[p.Ppid] = append(g.children[p.Ppid], p)
		}
	}
	for _, p := range processes {
		if err := g.check(p); err != nil {
			return nil, err
		}
	}
	if init := g.byPID[1]; init == nil || init.Ppid != 0 || init.Sid > 1 {
		return nil, fmt.Errorf("no init: %w", errs.ErrCorrupt)
	}
	return g, nil
}

// check refuses sessions and parents that can't be.
func (g *grower) check(p *blob.Process) error {
	leader, parent := g.byPID[p.Sid], g.byPID[p.Ppid]
	switch {
	case p.Pid < 1 || p.Sid < 0 || p.Pgid < 0:
		return fmt.Errorf("pid %d, group %d, session %d: %w", p.Pid, p.Pgid, p.Sid, errs.ErrCorrupt)
	case leader != nil && (leader.Sid != leader.Pid || leader.Pgid != leader.Pid):
		return fmt.Errorf("pid %d: the leader of its session %d is in another, or in another group: %w", p.Pid, p.Sid, errs.ErrCorrupt)
	case parent != nil && parent.State == blob.Process_STATE_ZOMBIE:
		return fmt.Errorf("pid %d: its parent %d is a zombie: %w", p.Pid, p.Ppid, errs.ErrCorrupt)
	}
	return nil
}

// plan decides, from the leaves up, in which session each process must be born.
// A leader's children from before it led are still in the session of its birth.
func (g *grower) plan(p *blob.Process) error {
	g.birth[p.Pid] = p.Sid
	if p.Sid == p.Pid && p.Pid != 1 {
		g.birth[p.Pid] = anywhere
	}
	for _, c := range g.children[p.Pid] {
		if err := g.plan(c); err != nil {
			return err
		}
		in := g.birth[c.Pid]
		if in == anywhere || in == p.Sid || in == g.birth[p.Pid] || g.adopts(p, in) {
			continue
		}
		if g.birth[p.Pid] != anywhere {
			return fmt.Errorf("pid %d: its child %d was born in session %d, and it is no subreaper that could adopt it: %w",
				p.Pid, c.Pid, in, errs.ErrUnsupported)
		}
		g.birth[p.Pid] = in
	}
	return nil
}

// adopts says that p is who adopts the orphans of session sid. A session whose
// leader is dead can be founded again anywhere.
func (g *grower) adopts(p *blob.Process, sid int32) bool {
	if sid == 0 || (p.Pid != 1 && !p.ChildSubreaper) {
		return false
	}
	leader := g.byPID[sid]
	return leader == nil || g.reaper(leader) == p.Pid
}

// reaper is who adopts the orphans of p's children.
func (g *grower) reaper(p *blob.Process) int32 {
	for range len(g.byPID) { // an image may say that p is its own ancestor
		if p == nil || p.ChildSubreaper {
			break
		}
		p = g.byPID[p.Ppid]
	}
	if p == nil {
		return 1
	}
	return p.Pid
}

func (g *grower) step(s Step) { g.steps = append(g.steps, s) }

func (g *grower) fork(parent, pid int32) {
	g.step(Step{Kind: StepFork, PID: pid, Parent: parent})
	if g.byPID[pid] != nil {
		g.born++
	}
}

// grow gives p, which was born in the session that it must be born in, its own
// session, and then its children.
func (g *grower) grow(p *blob.Process) error {
	if p.ChildSubreaper {
		g.step(Step{Kind: StepSubreaper, PID: p.Pid})
	}
	before, after, adopted := g.sort(p)
	for _, c := range before {
		g.fork(p.Pid, c.Pid)
	}
	if p.Sid == p.Pid {
		if p.Pid != 1 { // init's session is the runtime's work
			g.step(Step{Kind: StepSetsid, PID: p.Pid})
		}
		g.led[p.Pid] = true
	}
	for _, c := range after {
		g.fork(p.Pid, c.Pid)
	}
	for _, c := range slices.Concat(before, after) {
		if err := g.grow(c); err != nil {
			return err
		}
	}
	if p.Sid == p.Pid {
		for _, c := range g.waiting[p.Pid] {
			if err := g.bear(p, c); err != nil {
				return err
			}
		}
	}
	return g.adopt(p, adopted)
}

// sort tells p's children apart: those born before p led its session, those
// born after, and those that p adopted from another session.
func (g *grower) sort(p *blob.Process) (before, after, adopted []*blob.Process) {
	for _, c := range g.children[p.Pid] {
		switch in := g.birth[c.Pid]; {
		case in == anywhere || in == p.Sid:
			after = append(after, c)
		case g.adopts(p, in):
			adopted = append(adopted, c)
		default:
			before = append(before, c)
		}
	}
	return before, after, adopted
}

// adopt plans for the children that p adopted: from a helper of their session if
// its leader lives and is there, later if it is not there yet, or from a helper
// that leads their session if its leader is dead.
func (g *grower) adopt(p *blob.Process, adopted []*blob.Process) error {
	dead := map[int32][]*blob.Process{}
	var order []int32
	for _, c := range adopted {
		sid := g.birth[c.Pid]
		leader := g.byPID[sid]
		switch {
		case leader == nil:
			if dead[sid] == nil {
				order = append(order, sid)
			}
			dead[sid] = append(dead[sid], c)
		case g.led[sid]:
			if err := g.bear(leader, c); err != nil {
				return err
			}
		default:
			g.waiting[sid] = append(g.waiting[sid], c)
		}
	}
	for _, sid := range order {
		if err := g.revive(p, sid, dead[sid]); err != nil {
			return err
		}
	}
	return nil
}

// revive bears orphans from a helper that leads their session for a while: p,
// its parent, adopts them.
func (g *grower) revive(p *blob.Process, sid int32, orphans []*blob.Process) error {
	if g.led[sid] {
		return fmt.Errorf("pid %d: the orphans of session %d have two parents: %w", p.Pid, sid, errs.ErrUnsupported)
	}
	g.led[sid] = true
	g.fork(p.Pid, sid)
	g.step(Step{Kind: StepSetsid, PID: sid})
	for _, c := range orphans {
		g.fork(sid, c.Pid)
	}
	g.step(Step{Kind: StepExit, PID: sid, Parent: p.Pid})
	for _, c := range orphans {
		if err := g.grow(c); err != nil {
			return err
		}
	}
	return nil
}

// bear has orphan born from a helper of leader's session; the helper ends.
func (g *grower) bear(leader, orphan *blob.Process) error {
	helper := g.free()
	g.fork(leader.Pid, helper)
	g.fork(helper, orphan.Pid)
	g.step(Step{Kind: StepExit, PID: helper, Parent: leader.Pid})
	return g.grow(orphan)
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
