package tracer

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/cr/sys"
	"golang.org/x/sys/unix"
)

// Options for [Seize] and [Task.SetOptions].
const (
	TraceFork      = unix.PTRACE_O_TRACEFORK
	TraceVfork     = unix.PTRACE_O_TRACEVFORK
	TraceClone     = unix.PTRACE_O_TRACECLONE
	TraceExec      = unix.PTRACE_O_TRACEEXEC
	TraceSysGood   = unix.PTRACE_O_TRACESYSGOOD
	ExitKill       = unix.PTRACE_O_EXITKILL
	SuspendSeccomp = unix.PTRACE_O_SUSPEND_SECCOMP
)

// Task is one thread attached to the calling OS thread. TID is its id in our
// pid namespace. It is not safe for concurrent use.
type Task struct {
	TID     int
	options int
	stopped bool
}

// quiet is done before the first task is traced.
var quiet = sync.OnceValue(sys.NoStopSignals)

// Seize attaches to a running or job-control stopped task without stopping it.
func Seize(tid, options int) (*Task, error) {
	t := &Task{TID: tid, options: options}
	if err := quiet(); err != nil {
		return t, err
	}
	_, err := sys.Ptrace(sys.PtraceSeize, tid, 0, uintptr(options))
	return t, t.wrap("seize", err)
}

// Attached is the task of a child that the kernel attached for us at its birth
// (TraceFork, TraceVfork, TraceClone); it inherits the options of its parent.
func Attached(tid int, parent *Task) *Task {
	t := &Task{TID: tid}
	if parent != nil {
		t.options = parent.options
	}
	return t
}

// wrap names the call and the task. ESRCH means the task died, since its tracer
// asks only while it is in a stop: a caller that resumed it waits first.
func (t *Task) wrap(op string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ESRCH), errors.Is(err, unix.ECHILD):
		return fmt.Errorf("%s task %d: %w (%w)", op, t.TID, errs.ErrGone, err)
	}
	return fmt.Errorf("%s task %d: %w", op, t.TID, err)
}

// Interrupt asks the task to stop; [Task.Wait] tells when it has.
func (t *Task) Interrupt() error {
	_, err := sys.Ptrace(sys.PtraceInterrupt, t.TID, 0, 0)
	return t.wrap("interrupt", err)
}

// Cont lets the task run on, delivering sig unless it is 0.
func (t *Task) Cont(sig int) error { return t.resume("continue", sys.PtraceCont, sig) }

// Step runs one instruction of the task. The kernel ends it with a forced
// SIGTRAP, which resets the disposition of an ignored or blocked SIGTRAP
// (force_sig_info_to_task in kernel/signal.c).
func (t *Task) Step(sig int) error { return t.resume("step", sys.PtraceSingleStep, sig) }

// ToSyscall lets the task run to the next entry to or exit from a system call.
func (t *Task) ToSyscall(sig int) error { return t.resume("continue to call", sys.PtraceSyscall, sig) }

// Detach lets the task go, delivering sig unless it is 0.
// Precondition: the task is in a ptrace stop.
func (t *Task) Detach(sig int) error { return t.resume("detach", sys.PtraceDetach, sig) }

func (t *Task) resume(op string, request, sig int) error {
	_, err := sys.Ptrace(request, t.TID, 0, uintptr(sig))
	return t.wrap(op, err)
}

// Options are the options set last.
func (t *Task) Options() int { return t.options }

// SetOptions replaces all options of a stopped task.
func (t *Task) SetOptions(options int) error {
	if _, err := sys.Ptrace(sys.PtraceSetOptions, t.TID, 0, uintptr(options)); err != nil {
		return t.wrap("set options of", err)
	}
	t.options = options
	return nil
}

// Stopped says whether job control held the whole process stopped when the task
// last stopped for us other than by a signal or an event.
func (t *Task) Stopped() bool { return t.stopped }

// EventMsg is what belongs to the event stop the task is in: the child's id, in
// our pid namespace, of a fork, vfork or clone; the former thread id of an exec.
func (t *Task) EventMsg() (uint64, error) {
	m, err := unix.PtraceGetEventMsg(t.TID)
	return uint64(m), t.wrap("read event of", err)
}

// Halt stops the task where kernel code acts on its registers when it resumes:
// within get_signal (kernel/signal.c), with no signal in hand. A signal that
// comes first is delivered, which at most sets up its handler's frame. The stop
// returned is Interrupted or Group; events that come first are passed over.
//
// Precondition: the task runs, or has been resumed since its last stop.
func (t *Task) Halt(ctx context.Context, bound time.Duration) (Stop, error) {
	if err := t.Interrupt(); err != nil {
		return Stop{}, err
	}
	return t.halted(ctx, bound)
}

// Deliver makes the kernel deliver sig, which at most sets up its handler's
// frame, and stops the task as [Task.Halt] does before it runs on.
// Precondition: the task is in a stop of kind Signal.
func (t *Task) Deliver(ctx context.Context, sig int, bound time.Duration) (Stop, error) {
	if err := t.Interrupt(); err != nil {
		return Stop{}, err
	}
	if err := t.Cont(sig); err != nil {
		return Stop{}, err
	}
	return t.halted(ctx, bound)
}

// halted waits for the stop that Interrupt asked for.
func (t *Task) halted(ctx context.Context, bound time.Duration) (Stop, error) {
	for {
		st, err := t.Wait(ctx, bound)
		if err != nil {
			return st, err
		}
		sig := 0
		switch st.Kind {
		case Interrupted, Group:
			return st, nil
		case Signal:
			sig = int(st.Signal)
		case Event, Syscall:
		case Gone:
			return st, t.wrap("halt", unix.ESRCH)
		}
		// Any trap clears a pending interrupt (ptrace_stop in kernel/signal.c).
		if err := t.Interrupt(); err != nil {
			return st, err
		}
		if err := t.Cont(sig); err != nil {
			return st, err
		}
	}
}
