package task

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/stasis-cr/stasis/cr/blob"
)

var (
	errPerm  = errors.New("EPERM")
	errTaken = errors.New("the number is in use")
	errNone  = errors.New("no such process")
)

// modelTask is a process as a model of the kernel sees it.
type modelTask struct {
	pid, ppid, pgid, sid int32
	subreaper, zombie    bool
}

// model is the part of the kernel that families are made by: fork, setsid,
// setpgid, exit and wait (kernel/fork.c, sys.c, exit.c, pid.c).
type model map[int32]*modelTask

// newModel is a container whose init was given its session by the runtime.
func newModel(sid int32) model {
	return model{1: {pid: 1, pgid: sid, sid: sid}}
}

func (m model) living(pid int32) (*modelTask, error) {
	if t := m[pid]; t != nil && !t.zombie {
		return t, nil
	}
	return nil, fmt.Errorf("pid %d: %w", pid, errNone)
}

// used says that a number can't be given out: it names a task, a group or a
// session (struct pid lives as long as any of the three).
func (m model) used(n int32) bool {
	for _, t := range m {
		if t.pid == n || t.pgid == n || t.sid == n {
			return true
		}
	}
	return false
}

func (m model) fork(parent, pid int32) error {
	p, err := m.living(parent)
	if err != nil {
		return err
	}
	if pid < 2 || m.used(pid) {
		return fmt.Errorf("fork of %d: %w", pid, errTaken)
	}
	m[pid] = &modelTask{pid: pid, ppid: parent, pgid: p.pgid, sid: p.sid}
	return nil
}

// group finds any member of a group, zombies included.
func (m model) group(pgid int32) *modelTask {
	for _, t := range m {
		if t.pgid == pgid {
			return t
		}
	}
	return nil
}

func (m model) setsid(pid int32) error {
	t, err := m.living(pid)
	if err != nil {
		return err
	}
	if t.sid == pid || m.group(pid) != nil {
		return fmt.Errorf("setsid of %d: %w", pid, errPerm)
	}
	t.sid, t.pgid = pid, pid
	return nil
}

func (m model) setpgid(pid, pgid int32) error {
	t, err := m.living(pid)
	if err != nil {
		return err
	}
	if t.sid == pid {
		return fmt.Errorf("setpgid of session leader %d: %w", pid, errPerm)
	}
	if pgid != pid {
		g := m.group(pgid)
		if g == nil || g.sid != t.sid {
			return fmt.Errorf("setpgid of %d to %d: %w", pid, pgid, errPerm)
		}
	}
	t.pgid = pgid
	return nil
}

// exit leaves a zombie and hands its children to the nearest subreaper above
// it, or to init.
func (m model) exit(pid int32) error {
	t, err := m.living(pid)
	if err != nil {
		return err
	}
	t.zombie = true
	reaper := m[t.ppid]
	for reaper != nil && reaper.pid != 1 && (!reaper.subreaper || reaper.zombie) {
		reaper = m[reaper.ppid]
	}
	for _, c := range m {
		if c.ppid == pid {
			c.ppid = reaper.pid
		}
	}
	return nil
}

func (m model) wait(parent, pid int32) error {
	if t := m[pid]; t == nil || t.ppid != parent || !t.zombie {
		return fmt.Errorf("wait of %d for %d: %w", parent, pid, errNone)
	}
	delete(m, pid)
	return nil
}

// apply does one step of a plan as the engine does it.
func (m model) apply(s Step) error {
	switch s.Kind {
	case StepFork:
		return m.fork(s.Parent, s.PID)
	case StepSetsid:
		return m.setsid(s.PID)
	case StepSetpgid:
		return m.setpgid(s.PID, s.Group)
	case StepExit:
		if err := m.exit(s.PID); err != nil {
			return err
		}
		return m.wait(s.Parent, s.PID)
	case StepSubreaper:
		t, err := m.living(s.PID)
		if err == nil {
			t.subreaper = true
		}
		return err
	}
	return fmt.Errorf("unknown step %d", s.Kind)
}

// processes is what a checkpoint would record of the model, in the order in
// which a walk from init finds them.
func (m model) processes() []*blob.Process {
	var out []*blob.Process
	order := []int32{1}
	for i := 0; i < len(order); i++ {
		t := m[order[i]]
		p := &blob.Process{Pid: t.pid, Ppid: t.ppid, Pgid: t.pgid, Sid: t.sid, ChildSubreaper: t.subreaper}
		if t.zombie {
			p.State, p.ChildSubreaper = blob.Process_STATE_ZOMBIE, false
		}
		out = append(out, p)
		for _, c := range slices.Sorted(maps.Keys(m)) {
			if m[c].ppid == t.pid {
				order = append(order, c)
			}
		}
	}
	return out
}

// rebuild grows the image in a fresh model and returns what came of it, and how
// far the steps went.
func rebuild(image []*blob.Process, steps []Step) (model, error) {
	m := newModel(image[0].Sid)
	for i, s := range steps {
		if err := m.apply(s); err != nil {
			return m, fmt.Errorf("step %d of %d, %+v: %w", i+1, len(steps), s, err)
		}
	}
	for _, p := range image {
		if p.State == blob.Process_STATE_ZOMBIE {
			if err := m.exit(p.Pid); err != nil {
				return m, err
			}
		}
	}
	return m, nil
}

// differences compares what grew with the image.
func (m model) differences(image []*blob.Process) error {
	var all []error
	want := map[int32]bool{}
	for _, p := range image {
		want[p.Pid] = true
		t := m[p.Pid]
		if t == nil {
			all = append(all, fmt.Errorf("pid %d is missing", p.Pid))
			continue
		}
		got := *t
		if got.zombie {
			got.subreaper = false
		}
		is := modelTask{p.Pid, p.Ppid, p.Pgid, p.Sid, p.ChildSubreaper, p.State == blob.Process_STATE_ZOMBIE}
		if got != is {
			all = append(all, fmt.Errorf("pid %d became %+v, was %+v", p.Pid, got, is))
		}
	}
	for pid := range m {
		if !want[pid] {
			all = append(all, fmt.Errorf("pid %d is left over", pid))
		}
	}
	slices.SortFunc(all, func(a, b error) int { return cmp.Compare(a.Error(), b.Error()) })
	return errors.Join(all...)
}
