package cr

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/cr/fault"
	"github.com/stasis-cr/stasis/cr/procfs"
	"github.com/stasis-cr/stasis/cr/sys"
	"github.com/stasis-cr/stasis/cr/task"
	"github.com/stasis-cr/stasis/cr/tracer"
)

// Bounds of the freeze.
const (
	freezeBound = 10 * time.Second       // until all tasks are stopped
	stopNap     = 2 * time.Millisecond   // for one task, before the others are tried
	seizeBound  = 100 * time.Millisecond // a seize that takes longer waits for a frozen task
	releaseWait = time.Second            // for all tasks that do not rest yet
	seizeTries  = 10
)

// births are those that the kernel attaches for us while tasks are stopped
// one by one, and the exec that ends a vfork.
const births = tracer.TraceFork | tracer.TraceVfork | tracer.TraceClone | tracer.TraceExec

// process is one process of a frozen container.
type process struct {
	hostPID, hostPPID int
	status            procfs.Status
	threads           []*task.Stopped // leader first; none in a zombie
	zombie            bool
	stopSignal        unix.Signal // of job control; 0 if it runs
}

// frozen is a container whose every thread is in a ptrace stop of ours. No
// cgroup freezer holds it, so nothing stays frozen if we die.
type frozen struct {
	c         *container
	members   func() ([]int, error) // the processes that are to stop
	was       cgroups.FreezerState
	since     time.Time       // from when on one of them may stand still
	attached  map[int]*thread // by tid
	lost      bool            // one of them has another's number, who was not attached
	processes []*process      // parents before children
	thawed    bool
	released  bool // the container is no longer ours to pause
	calm      func()
	log       *slog.Logger
}

// thread is a task on its way into a stop.
type thread struct {
	*tracer.Task
	pid     int // of its process
	stopped bool
	gone    bool
	signal  unix.Signal // of a group stop
}

// freeze stops every thread of the container.
//
// Each is seized, then interrupted; births in between are attached by the
// kernel; the tree is walked again until a walk finds nobody new. A container
// that arrives frozen by the cgroup v1 freezer can't stop for ptrace, so it is
// thawed once every task is seized and has its interrupt waiting: it does not
// get to run. (A seize of a task that is both frozen and stopped by job control
// blocks until the thaw, so a seize that takes long brings the thaw forward.)
func freeze(ctx context.Context, c *container, log *slog.Logger) (_ *frozen, err error) {
	f := &frozen{c: c, members: func() ([]int, error) { return family(c.initPID) }, attached: map[int]*thread{}, log: log}
	if f.was, err = c.cgroup.GetFreezerState(); err != nil {
		return nil, fmt.Errorf("freezer state: %w", err)
	}
	if err := f.stopMembers(ctx); err != nil {
		return nil, err
	}
	if err := f.describe(); err != nil {
		return nil, errors.Join(err, f.release(context.WithoutCancel(ctx)))
	}
	return f, nil
}

// freezeOne stops the threads of one process of a running container.
func freezeOne(ctx context.Context, c *container, pid int, log *slog.Logger) (*frozen, error) {
	f := &frozen{
		c: c, members: func() ([]int, error) { return []int{pid}, nil }, was: cgroups.Thawed,
		attached: map[int]*thread{}, log: log,
	}
	return f, f.stopMembers(ctx)
}

// stopMembers stops every thread of the members, or lets all of them go.
func (f *frozen) stopMembers(ctx context.Context) (err error) {
	f.calm = hurry()
	defer func() {
		if err != nil {
			err = errors.Join(err, f.release(context.WithoutCancel(ctx)))
		}
	}()
	deadline := time.Now().Add(freezeBound)
	for round := 0; ; round++ {
		f.lost = false
		found, err := f.seizeAll()
		if err != nil {
			return err
		}
		if err := fault.Point("seized"); err != nil {
			return err
		}
		if !f.thawed && f.was == cgroups.Frozen {
			if err := f.thaw(); err != nil {
				return err
			}
			if err := fault.Point("thawed"); err != nil {
				return err
			}
		}
		if err := f.stopAll(ctx, deadline); err != nil {
			return err
		}
		if found == 0 && round > 0 && !f.lost {
			break
		}
	}
	if err := fault.Point("stopped"); err != nil {
		return err
	}
	return nil
}

func (f *frozen) thaw() error {
	f.thawed = true
	if err := f.c.cgroup.Freeze(cgroups.Thawed); err != nil {
		return fmt.Errorf("thaw under ptrace: %w", err)
	}
	return nil
}

// seizeAll attaches to every thread that is not attached yet and returns how
// many that were.
func (f *frozen) seizeAll() (found int, err error) {
	if f.was == cgroups.Frozen && !f.thawed {
		early := time.AfterFunc(seizeBound, func() {
			if err := f.c.cgroup.Freeze(cgroups.Thawed); err != nil {
				f.log.Warn("thaw for a blocked seize", slog.Any("err", err))
			}
		})
		defer early.Stop()
	}
	all, err := f.threads()
	if err != nil {
		return 0, err
	}
	if f.since.IsZero() {
		f.since = time.Now()
	}
	for _, t := range all {
		n, err := f.seize(t.pid, t.tid)
		if err != nil {
			return found, err
		}
		found += n
	}
	return found, nil
}

// aThread is one that a walk has found.
type aThread struct{ pid, tid int }

// threads lists the threads of the members before the first of them is stopped: the
// walk takes longer than the seizing.
func (f *frozen) threads() (all []aThread, err error) {
	pids, err := f.members()
	if err != nil {
		return nil, err
	}
	for _, pid := range pids {
		tids, err := threadsOf(pid)
		if err != nil && !vanished(err) {
			return nil, err
		}
		for _, tid := range tids {
			all = append(all, aThread{pid, tid})
		}
	}
	return all, nil
}

func (f *frozen) seize(pid, tid int) (int, error) {
	if f.attached[tid] != nil {
		return 0, nil
	}
	for try := 1; ; try++ {
		stop := reapMeanwhile(pid)
		t, err := tracer.Seize(tid, births)
		stop()
		switch {
		case errors.Is(err, errs.ErrGone):
			return 0, nil
		case errors.Is(err, unix.EPERM):
			// A task that has ended and was not waited for answers the same
			// (ptrace_attach in kernel/ptrace.c).
			if zombie, e := isZombie(tid); zombie || vanished(e) {
				return 0, nil
			}
			switch st, e := procfs.ReadStatus(tid); {
			case e == nil && isOurs(st.TracerPID): // see executed
				f.attached[tid] = &thread{Task: tracer.Attached(tid, nil), pid: pid}
				return 1, nil
			case e == nil && st.TracerPID != 0:
				return 0, fmt.Errorf("pid %d is traced by process %d: end that first", containerPID(&st), st.TracerPID)
			}
			if try == seizeTries {
				return 0, err
			}
			// It was a leader that had ended, and another thread has its number now.
		case err != nil:
			return 0, err
		}
		f.attached[tid] = &thread{Task: t, pid: pid}
		if err := t.Interrupt(); err != nil && !errors.Is(err, errs.ErrGone) {
			return 0, err
		}
		return 1, nil
	}
}

// stopAll waits until every attached thread is stopped at a place from which it
// can be looked at and let go.
func (f *frozen) stopAll(ctx context.Context, deadline time.Time) error {
	for round := 0; ; round++ {
		var waiting []*thread
		for _, t := range f.attached {
			if t.stopped || t.gone {
				continue
			}
			nap := stopNap
			if len(waiting) > 0 {
				nap = 0
			}
			if err := f.stop(ctx, t, nap); err != nil {
				return err
			}
			if !t.stopped && !t.gone {
				waiting = append(waiting, t)
			}
		}
		if len(waiting) == 0 && f.allStopped() {
			return nil
		}
		if time.Now().After(deadline) && len(waiting) > 0 {
			return f.stuck(waiting[0])
		}
		if round > 0 {
			if err := f.passVforks(waiting); err != nil {
				return err
			}
			if err := f.passExecs(ctx, waiting); err != nil {
				return err
			}
		}
	}
}

func (f *frozen) allStopped() bool {
	for _, t := range f.attached {
		if !t.stopped && !t.gone {
			return false
		}
	}
	return true
}

// stuck says what a task does that won't stop.
func (f *frozen) stuck(t *thread) error {
	what := "?"
	if st, err := procfs.ReadStat(t.TID); err == nil {
		what = string(rune(st.State))
	}
	return fmt.Errorf("task %d (state %s) did not stop within %v: %w", t.TID, what, freezeBound, errs.ErrTimeout)
}

// stop waits for at most nap for one thread to come to rest.
func (f *frozen) stop(ctx context.Context, t *thread, nap time.Duration) error {
	stop, err := t.Wait(ctx, nap)
	switch {
	case errors.Is(err, errs.ErrTimeout):
		return nil
	case errors.Is(err, errs.ErrGone):
		t.gone = true
		f.executed(t)
		return nil
	case err != nil:
		return err
	}
	regs, err := t.Regs()
	if err == nil { // whatever lets it go on next
		f.c.calls.Stopped(t.TID, &regs)
	}
	switch stop.Kind {
	case tracer.Interrupted:
		if err == nil {
			err = task.BeginAgain(t.Task, &regs)
		}
		if err != nil && !errors.Is(err, errs.ErrGone) && !vanished(err) {
			return err
		}
		t.stopped, t.signal = true, 0
	case tracer.Group:
		t.stopped, t.signal = true, stop.Signal
	case tracer.Gone:
		t.gone = true
	case tracer.Signal: // on its way before our interrupt: let it have it
		return f.goOn(t, int(stop.Signal))
	case tracer.Event:
		if err := f.born(t, stop.Event); err != nil {
			return err
		}
		return f.goOn(t, 0)
	default:
		return f.goOn(t, 0)
	}
	return nil
}

// goOn passes a stop that is no place to rest at; the next one follows.
func (f *frozen) goOn(t *thread, sig int) error {
	t.stopped = false
	err := t.Cont(sig)
	if err == nil {
		err = t.Interrupt()
	}
	if errors.Is(err, errs.ErrGone) {
		t.gone = true
		return nil
	}
	return err
}

// born takes over a child that the kernel attached for us.
func (f *frozen) born(parent *thread, event int) error {
	if event != unix.PTRACE_EVENT_FORK && event != unix.PTRACE_EVENT_VFORK && event != unix.PTRACE_EVENT_CLONE {
		return nil
	}
	msg, err := parent.EventMsg()
	if err != nil {
		return err
	}
	tid := int(msg)
	pid := tid
	if event == unix.PTRACE_EVENT_CLONE {
		if st, err := procfs.ReadStatus(tid); err == nil {
			pid = st.TGID
		}
	}
	if f.attached[tid] == nil {
		f.attached[tid] = &thread{Task: tracer.Attached(tid, parent.Task), pid: pid}
	}
	return nil
}

// passVforks lets children run that hold up a parent in vfork(2), which can't
// stop until the child execs or exits. The child stops again at its exec.
func (f *frozen) passVforks(waiting []*thread) error {
	for _, parent := range waiting {
		for _, child := range f.attached {
			if !child.stopped || child.gone || child.pid == parent.pid {
				continue
			}
			st, err := procfs.ReadStatus(child.pid)
			if err != nil || st.PPID != parent.pid {
				continue
			}
			if same, err := sys.Kcmp(child.pid, parent.pid, sys.KcmpVM, 0, 0); err != nil || same != 0 {
				continue
			}
			child.stopped = false
			if err := child.Cont(0); err != nil && !errors.Is(err, errs.ErrGone) {
				return err
			}
		}
	}
	return nil
}

// describe sorts the stopped threads into processes, parents first.
func (f *frozen) describe() error {
	pids, err := family(f.c.initPID)
	if err != nil {
		return err
	}
	for _, pid := range pids {
		st, err := procfs.ReadStatus(pid)
		if err != nil {
			return fmt.Errorf("process %d: %w", pid, err)
		}
		p := &process{hostPID: pid, hostPPID: st.PPID, status: st, zombie: st.State == 'Z'}
		if !p.zombie {
			if err := f.describeThreads(p); err != nil {
				return err
			}
		}
		f.processes = append(f.processes, p)
	}
	return nil
}

func (f *frozen) describeThreads(p *process) error {
	tids, err := threadsOf(p.hostPID)
	if err != nil {
		return err
	}
	for _, tid := range tids {
		t := f.attached[tid]
		if t == nil || !t.stopped {
			return fmt.Errorf("thread %d of process %d is not stopped", tid, p.hostPID)
		}
		st := p.status
		if tid != p.hostPID {
			if st, err = procfs.ReadTaskStatus(p.hostPID, tid); err != nil {
				return err
			}
		}
		if t.signal != 0 {
			p.stopSignal = t.signal
		}
		if err := t.SetOptions(births | tracer.SuspendSeccomp); err != nil {
			return err
		}
		p.threads = append(p.threads, &task.Stopped{Task: t.Task, Status: st, Calls: f.c.calls})
	}
	return nil
}

// release lets the container go on in the state in which it came: running, or
// paused by its cgroup's freezer. It is safe to call again.
func (f *frozen) release(ctx context.Context) error {
	if f.released {
		return nil
	}
	f.released = true
	defer f.calm()
	var all error
	if f.was == cgroups.Frozen {
		if err := f.c.cgroup.Freeze(cgroups.Frozen); err != nil {
			all = fmt.Errorf("pause again: %w", err)
		}
	}
	end := time.Now().Add(releaseWait)
	if f.was == cgroups.Frozen && !f.thawed {
		end = time.Now() // no task comes to rest that is frozen: our own end lets it go
	}
	// Nobody waits for one that does not rest; the last look is for those that were
	// followed to another number in the one before.
	var leaders []*thread
	for _, rests := range []bool{true, false, false} {
		var lost []*thread
		for _, t := range f.attached {
			if t.gone || t.stopped != rests {
				continue
			}
			switch err := f.detach(ctx, t, end); {
			case errors.Is(err, errs.ErrGone) && t.TID == t.pid:
				leaders = append(leaders, t)
			case errors.Is(err, errs.ErrGone):
				lost = append(lost, t)
			case err != nil:
				all = errors.Join(all, err)
			}
			t.gone = true
		}
		f.bury(ctx, lost)
	}
	f.bury(ctx, leaders)
	return all
}

// detach lets a task go that comes to rest before end.
func (f *frozen) detach(ctx context.Context, t *thread, end time.Time) error {
	for !t.stopped && !t.gone && time.Now().Before(end) {
		if err := f.stop(ctx, t, stopNap); err != nil {
			return err
		}
	}
	if t.gone {
		return nil
	}
	return t.Detach(0)
}
