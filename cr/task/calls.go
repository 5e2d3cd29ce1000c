package task

import (
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/procfs"
)

// Calls is what is known of system calls that go on by restart_syscall: those
// with a timeout that something interrupted, as a stop of ours does. Their
// registers do not say any more which call it was, but hold its arguments still.
// The kernel knows it by a function (struct restart_block) that nobody can ask
// for, so it must be seen in time: when the call is stopped first, or while it
// sleeps.
type Calls map[int]call // by tid

// call is a system call in progress. The next one that a thread makes in the same
// place with the same arguments has the same number.
type call struct {
	nr   uint64
	args [6]uint64
	sp   uint64
	pc   uint64
}

func callOf(regs *unix.PtraceRegs) call {
	return call{
		regs.Orig_rax,
		[6]uint64{regs.Rdi, regs.Rsi, regs.Rdx, regs.R10, regs.R8, regs.R9},
		regs.Rsp, regs.Rip,
	}
}

// Stopped notes the call of a thread that is about to go on from a stop.
func (k Calls) Stopped(tid int, regs *unix.PtraceRegs) {
	if int64(regs.Orig_rax) < 0 || regs.Orig_rax == unix.SYS_RESTART_SYSCALL {
		return
	}
	is := *regs
	if is.Rax == unix.SYS_RESTART_SYSCALL { // or a call's answer, which does no harm
		back(&is)
	}
	if int64(is.Rax) == eRestartBlock {
		k[tid] = callOf(&is)
	}
}

// Look notes the call of a thread that sleeps in restart_syscall. What can't be
// seen is not noted.
func (k Calls) Look(pid, tid int) {
	s, err := procfs.ReadSyscall(pid, tid)
	if err != nil || s.NR != unix.SYS_RESTART_SYSCALL {
		return
	}
	where, err := procfs.ReadWchan(pid, tid)
	if err != nil {
		return
	}
	if nr, ok := sleeper(where, s.Args[0]); ok {
		k[tid] = call{nr, s.Args, s.SP, s.PC}
	}
}

// sleeper is the system call whose restart sleeps in a function of the kernel (as
// wchan names it), of those that have a restart block: kernel/futex/waitwake.c,
// fs/select.c, kernel/time/hrtimer.c, alarmtimer.c and posix-cpu-timers.c. The
// functions of the last three count as the scheduler's, which wchan passes over:
// what it names is where every system call begins. They serve two calls, which
// differ in their first argument: an address, or a small number that may be
// negative (clockid_t).
func sleeper(function string, arg uint64) (nr uint64, ok bool) {
	const firstPage = 4096
	switch {
	case strings.Contains(function, "futex"):
		return unix.SYS_FUTEX, true
	case strings.Contains(function, "poll"):
		return unix.SYS_POLL, true
	case !slices.ContainsFunc([]string{"sleep", "restart_syscall", "syscall_64", "sys_call"}, func(s string) bool {
		return strings.Contains(function, s)
	}):
		return 0, false
	case arg < firstPage || int64(arg) < 0 || arg>>32 == 0 && int32(arg) < 0:
		return unix.SYS_CLOCK_NANOSLEEP, true
	}
	return unix.SYS_NANOSLEEP, true
}

// original is the number of the call that a stopped thread is in.
func (k Calls) original(tid int, regs *unix.PtraceRegs) uint64 {
	if regs.Orig_rax == unix.SYS_RESTART_SYSCALL {
		is, was := callOf(regs), k[tid]
		if is.nr = was.nr; is == was {
			return was.nr
		}
	}
	return regs.Orig_rax
}
