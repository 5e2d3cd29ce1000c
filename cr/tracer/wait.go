package tracer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/cr/sys"
	"golang.org/x/sys/unix"
)

// Kind says why a task stopped.
type Kind int

// The kinds of stops (ptrace(2), "Stopped tracees").
const (
	Signal      Kind = iota + 1 // a signal is in hand: Cont or Detach deliver or drop it
	Group                       // job control: the whole process is stopped
	Interrupted                 // by Interrupt, or a newborn's first stop
	Event                       // fork, vfork, clone, exec, exit, vfork done: see Stop.Event
	Syscall                     // entry or exit of a call, after ToSyscall with TraceSysGood
	Gone                        // exited or killed: no longer a task
)

// Stop is one report of wait4(2).
type Stop struct {
	Kind   Kind
	Signal unix.Signal // Signal, Group: which; Gone: what killed it, 0 if it exited
	Event  int         // Event: unix.PTRACE_EVENT_*
	Exited bool        // Gone by exit rather than by a signal
	Status unix.WaitStatus
}

// eventSignal is what the kernel reports with events and interrupts; with bit 7
// set it is a syscall stop under TraceSysGood.
const (
	eventSignal   = unix.SIGTRAP
	syscallSignal = unix.SIGTRAP | 0x80
)

// decode sorts a status. The high half holds the event, and WaitStatus.Signal
// does not know stops of events apart from signals.
func decode(ws unix.WaitStatus) Stop {
	switch {
	case ws.Exited():
		return Stop{Kind: Gone, Exited: true, Status: ws}
	case ws.Signaled():
		return Stop{Kind: Gone, Signal: ws.Signal(), Status: ws}
	}
	sig, event := unix.Signal(ws>>8&0xff), int(ws>>16)
	switch {
	case event == unix.PTRACE_EVENT_STOP && sig == eventSignal:
		return Stop{Kind: Interrupted, Status: ws}
	case event == unix.PTRACE_EVENT_STOP:
		return Stop{Kind: Group, Signal: sig, Status: ws}
	case event != 0:
		return Stop{Kind: Event, Event: event, Status: ws}
	case sig == syscallSignal:
		return Stop{Kind: Syscall, Status: ws}
	}
	return Stop{Kind: Signal, Signal: sig, Status: ws}
}

// note remembers what only these two kinds of stops tell.
func (t *Task) note(st Stop) Stop {
	if st.Kind == Group || st.Kind == Interrupted {
		t.stopped = st.Kind == Group
	}
	return st
}

// A task that runs a batch of calls answers within microseconds, so Wait spins
// first: a sleep costs more than the batch.
const (
	spin = 200 * time.Microsecond
	nap  = 50 * time.Microsecond
)

// Wait waits for the next stop of this task, or its end, for at most bound
// ([errs.ErrTimeout]). The end is a Stop of kind Gone the first time and
// [errs.ErrGone] from then on.
func (t *Task) Wait(ctx context.Context, bound time.Duration) (Stop, error) {
	start := time.Now()
	for {
		var ws unix.WaitStatus
		switch pid, err := unix.Wait4(t.TID, &ws, unix.WNOHANG|unix.WALL, nil); {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return Stop{}, t.wrap("wait for", err)
		case pid == t.TID:
			return t.note(decode(ws)), nil
		}
		waited := time.Since(start)
		if waited > bound {
			return Stop{}, fmt.Errorf("wait for task %d: %w after %v", t.TID, errs.ErrTimeout, bound)
		}
		if waited < spin {
			sys.SchedYield()
			continue
		}
		if ctx.Err() != nil {
			return Stop{}, fmt.Errorf("wait for task %d: %w", t.TID, context.Cause(ctx))
		}
		sys.Nap(nap)
	}
}
