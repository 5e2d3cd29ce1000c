package remote

import (
	"fmt"

	"github.com/stasis-cr/stasis/cr/errs"
	"golang.org/x/sys/unix"
)

// bit is the place of a signal in a set.
func bit(sig unix.Signal) uint64 { return 1 << (sig - 1) }

// bell is the signal by which a visited task says that it is done.
type bell struct {
	sig unix.Signal
	// guarded: one from elsewhere means something to the program, so it must
	// not be swallowed with ours.
	guarded bool
	// loud: the program has a handler, which runs if we die before the task
	// is done.
	loud bool
}

// forbidden can't be bells: they can't be blocked, are forced by faults, or
// take others back that are pending, as SIGCONT does with the stop signals
// (prepare_signal in kernel/signal.c).
const forbidden = uint64(1)<<(unix.SIGKILL-1) | 1<<(unix.SIGSTOP-1) | 1<<(unix.SIGCONT-1) |
	1<<(unix.SIGTSTP-1) | 1<<(unix.SIGTTIN-1) | 1<<(unix.SIGTTOU-1) | 1<<(unix.SIGSEGV-1) |
	1<<(unix.SIGBUS-1) | 1<<(unix.SIGILL-1) | 1<<(unix.SIGFPE-1) | 1<<(unix.SIGTRAP-1) | 1<<(unix.SIGSYS-1)

// chooseBell picks a signal that is as good as nothing if we die before we can
// swallow it. In order:
//
//   - ignored, by default or by request, and not blocked;
//   - ignored, but blocked: the program may wait for it by sigwait;
//   - SIGURG, SIGWINCH or SIGCHLD with a handler that the task could be in at
//     any time: handlers of these must bear one too many, since they stand for
//     "look again". Go's runtime catches all three, and sends itself SIGURG
//     all day;
//   - the same in a thread that blocks them.
//
// mask is the mask to come back to, which in sigsuspend and the like is not the
// one that /proc shows as blocked.
func chooseBell(st status, mask uint64) (bell, error) {
	usual := (bit(unix.SIGURG) | bit(unix.SIGWINCH) | bit(unix.SIGCHLD)) &^ st.pending
	quiet := (usual&^st.caught | st.ignored) &^ forbidden &^ st.pending
	blocked := st.blocked | mask
	if sig := pick(quiet &^ blocked); sig != 0 {
		return bell{sig, false, false}, nil
	}
	if sig := pick(quiet); sig != 0 {
		return bell{sig, true, false}, nil
	}
	if sig := pick(usual &^ blocked); sig != 0 {
		return bell{sig, true, true}, nil
	}
	if sig := pick(usual); sig != 0 {
		return bell{sig, true, true}, nil
	}
	return bell{}, fmt.Errorf("task has no signal to spare: %w", errs.ErrUnsupported)
}

// pick takes SIGURG, SIGWINCH and SIGCHLD first, then the lowest of the
// standard signals; real-time ones queue and are limited. 0 if there is none.
func pick(set uint64) unix.Signal {
	for _, sig := range []unix.Signal{unix.SIGURG, unix.SIGWINCH, unix.SIGCHLD} {
		if set&bit(sig) != 0 {
			return sig
		}
	}
	for sig := unix.Signal(1); sig < 32; sig++ {
		if set&bit(sig) != 0 {
			return sig
		}
	}
	return 0
}
