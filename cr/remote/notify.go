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
	// guarded are signals that must not be lost to it: the bell itself, when one
	// from elsewhere means something to the program, or all that it takes back.
	guarded uint64
}

// forbidden can't be bells: they can't be blocked, are forced by faults, or
// undo or are undone by others that are pending (prepare_signal in
// kernel/signal.c).
const forbidden = uint64(1)<<(unix.SIGKILL-1) | 1<<(unix.SIGSTOP-1) | 1<<(unix.SIGCONT-1) |
	1<<(unix.SIGTSTP-1) | 1<<(unix.SIGTTIN-1) | 1<<(unix.SIGTTOU-1) | 1<<(unix.SIGSEGV-1) |
	1<<(unix.SIGBUS-1) | 1<<(unix.SIGILL-1) | 1<<(unix.SIGFPE-1) | 1<<(unix.SIGTRAP-1) | 1<<(unix.SIGSYS-1)

// stops are the signals that a SIGCONT takes back.
const stops = uint64(1)<<(unix.SIGSTOP-1) | 1<<(unix.SIGTSTP-1) | 1<<(unix.SIGTTIN-1) | 1<<(unix.SIGTTOU-1)

// chooseBell picks a signal that is as good as nothing if we die before we can
// swallow it. In order:
//
//   - ignored, by default or by request, and not blocked;
//   - ignored, but blocked: the program may wait for it by sigwait;
//   - SIGCONT by default, if nothing of job control is under way. Go's runtime
//     catches all others;
//   - SIGURG, SIGWINCH or SIGCHLD with a handler that the task could be in at
//     any time: handlers of these must bear one too many, since they stand for
//     "look again". It would end a sleep with EINTR.
//
// mask is the mask to come back to, which in sigsuspend and the like is not the
// one that /proc shows as blocked.
func chooseBell(st status, mask uint64, stopped bool) (bell, error) {
	usual := bit(unix.SIGURG) | bit(unix.SIGWINCH) | bit(unix.SIGCHLD)
	quiet := (usual&^st.caught | st.ignored) &^ forbidden &^ st.pending
	blocked := st.blocked | mask
	if sig := pick(quiet &^ blocked); sig != 0 {
		return bell{sig, 0}, nil
	}
	if sig := pick(quiet); sig != 0 {
		return bell{sig, bit(sig)}, nil
	}
	cont := bit(unix.SIGCONT)
	if !stopped && st.pending&(stops|cont) == 0 && st.caught&cont == 0 {
		return bell{unix.SIGCONT, stops | blocked&cont}, nil
	}
	if sig := pick(usual &^ st.pending &^ blocked); sig != 0 {
		return bell{sig, bit(sig)}, nil
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
