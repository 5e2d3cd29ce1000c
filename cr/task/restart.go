package task

import (
	"context"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/procfs"
	"github.com/stasis-cr/stasis/cr/remote"
	"github.com/stasis-cr/stasis/cr/sys"
	"github.com/stasis-cr/stasis/cr/tracer"
)

// Errors of an interrupted system call that a program never sees: the kernel
// restarts it on the way back to user mode (include/linux/errno.h).
const (
	eRestartSys        = -512
	eRestartNoIntr     = -513
	eRestartNoHand     = -514
	eRestartBlock      = -516
	eRestartBlockWord  = 1<<64 + eRestartBlock
	syscallInsn        = "\x0f\x05"
	syscallInsnLen     = uint64(len(syscallInsn))
	rseqCSSize         = 32
	maxInterruptRounds = 50
)

// eintrCalls return EINTR when their sleep ends for no reason that they know,
// as ptrace and the freezer end it, though no signal came (signal(7), "...are
// never restarted"). They are begun again, so that the program does not notice.
var eintrCalls = []uint64{
	unix.SYS_EPOLL_WAIT, unix.SYS_EPOLL_PWAIT, unix.SYS_EPOLL_PWAIT2, unix.SYS_SEMOP, unix.SYS_SEMTIMEDOP,
	unix.SYS_IO_GETEVENTS, unix.SYS_IO_PGETEVENTS, unix.SYS_RT_SIGTIMEDWAIT,
	// On sockets with a timeout (SO_RCVTIMEO, SO_SNDTIMEO):
	unix.SYS_READ, unix.SYS_READV, unix.SYS_WRITE, unix.SYS_WRITEV, unix.SYS_RECVFROM, unix.SYS_RECVMSG, unix.SYS_RECVMMSG,
	unix.SYS_SENDTO, unix.SYS_SENDMSG, unix.SYS_SENDMMSG, unix.SYS_ACCEPT, unix.SYS_ACCEPT4,
}

// settle makes the registers of a stopped thread ones that can be let go again
// later, here or elsewhere: a call that the stop itself ended is begun again,
// one that is about to go on is put back to where it was interrupted, and a
// restartable sequence that was cut is aborted, as the kernel would do it on the
// way back. deliverable says that a signal waits which will run a handler: then an
// EINTR is the truth. It reports whether regs changed.
func settle(regs *unix.PtraceRegs, deliverable bool, rs *blob.RSeq, mem func(at uint64, b []byte) error) (bool, error) {
	if goesOn(regs, mem) {
		back(regs)
		return true, nil
	}
	if ended(regs) && !deliverable {
		again(regs)
		return true, nil
	}
	return abortSequence(regs, rs, mem)
}

// again makes the interrupted call of regs start from its beginning.
func again(regs *unix.PtraceRegs) {
	regs.Rax = regs.Orig_rax
	regs.Orig_rax = ^uint64(0)
	regs.Rip -= syscallInsnLen
}

// ended says whether a thread has just left a call of those that a stop ends.
func ended(regs *unix.PtraceRegs) bool {
	return int64(regs.Orig_rax) >= 0 && int64(regs.Rax) == -int64(unix.EINTR) && slices.Contains(eintrCalls, regs.Orig_rax)
}

// BeginAgain has a thread that an interrupt of ours has stopped, with these
// registers, begin its system call again when it goes on, if it is one that the
// stop has ended and no signal has that will run a handler.
func BeginAgain(t *tracer.Task, regs *unix.PtraceRegs) error {
	if !ended(regs) {
		return nil
	}
	mask, err := t.SigMask()
	if err != nil {
		return err
	}
	st, err := procfs.ReadStatus(t.TID)
	if err != nil || (st.SigPnd|st.ShdPnd)&^mask&st.SigCgt != 0 {
		return err
	}
	again(regs)
	return t.SetRegs(regs)
}

// goesOn says whether the next thing that a thread does is to go on with a call that
// had been interrupted: the kernel has sent it back to the instruction with the
// number of restart_syscall, and it was stopped once more before it got there.
// Another task's restart block knows nothing of the call, which would end with EINTR.
func goesOn(regs *unix.PtraceRegs, mem func(uint64, []byte) error) bool {
	insn := make([]byte, syscallInsnLen)
	return regs.Rax == unix.SYS_RESTART_SYSCALL && mem(regs.Rip, insn) == nil && string(insn) == syscallInsn
}

// back undoes what the kernel did to the registers of such a thread
// (arch_do_signal_or_restart in arch/x86/kernel/signal.c); it will do it again.
func back(regs *unix.PtraceRegs) {
	regs.Rax = eRestartBlockWord
	regs.Rip += syscallInsnLen
	if int64(regs.Orig_rax) < 0 { // an interrupt stopped it: the number is lost
		regs.Orig_rax = unix.SYS_RESTART_SYSCALL
	}
}

// abortSequence moves the instruction pointer to the abort handler if it stands
// within a restartable sequence (struct rseq_cs: version, flags, start,
// length after start, abort; kernel/rseq.c).
func abortSequence(regs *unix.PtraceRegs, rs *blob.RSeq, mem func(uint64, []byte) error) (bool, error) {
	if rs == nil || rs.Address == 0 {
		return false, nil
	}
	ptr := make([]byte, 8)
	if err := mem(rs.Address+8, ptr); err != nil {
		return false, fmt.Errorf("rseq area: %w", err)
	}
	if word(ptr, 0) == 0 {
		return false, nil
	}
	cs := make([]byte, rseqCSSize)
	if err := mem(word(ptr, 0), cs); err != nil {
		return false, fmt.Errorf("rseq critical section: %w", err)
	}
	start, length, abort := word(cs, 1), word(cs, 2), word(cs, 3)
	if regs.Rip-start >= length {
		return false, nil
	}
	regs.Rip = abort
	return true, nil
}

// restartOf describes a call that was interrupted with a restart block, which
// lives in the kernel only. nanosleep and clock_nanosleep have left the rest of
// their time where the program asked for it. nr is the call, see [Calls].
func restartOf(regs *unix.PtraceRegs, nr uint64, mem func(uint64, []byte) error) *blob.Restart {
	if int64(regs.Orig_rax) < 0 || int64(regs.Rax) != eRestartBlock {
		return nil
	}
	r := &blob.Restart{
		Nr:     nr,
		Args:   []uint64{regs.Rdi, regs.Rsi, regs.Rdx, regs.R10, regs.R8, regs.R9},
		LeftNs: -1,
	}
	var rem uint64
	switch r.Nr {
	case unix.SYS_NANOSLEEP:
		rem = regs.Rsi
	case unix.SYS_CLOCK_NANOSLEEP:
		rem = regs.R10
	}
	ts := make([]byte, 16)
	if rem != 0 && mem(rem, ts) == nil {
		r.LeftNs = int64(word(ts, 0))*int64(time.Second) + int64(word(ts, 1))
	}
	return r
}

// rebuildRestart gives the kernel's restart block of the thread what the image
// says: the sleep is started with the time that is left and interrupted. It
// returns the registers to go on with. insn is the address of a `syscall`
// instruction in the task.
func rebuildRestart(ctx context.Context, t *tracer.Task, c remote.Caller, th *blob.Thread, insn remote.Addr) error {
	r := th.Restart
	if r == nil {
		return nil
	}
	var regs unix.PtraceRegs
	decodeRegs(th.Gpr, &regs)
	if r.LeftNs < 0 || len(r.Args) != 6 || (r.Nr != unix.SYS_NANOSLEEP && r.Nr != unix.SYS_CLOCK_NANOSLEEP) {
		regs.Orig_rax = r.Nr
		again(&regs)
		encodeRegs(&regs, th.Gpr)
		return nil
	}
	at, err := c.Push(u64s(uint64(r.LeftNs)/1e9, uint64(r.LeftNs)%1e9))
	if err != nil {
		return err
	}
	defer c.Reset()
	call := regs
	call.Orig_rax, call.Rax, call.Rip = ^uint64(0), r.Nr, uint64(insn)
	call.Rdi, call.Rsi, call.Rdx, call.R10, call.R8, call.R9 = r.Args[0], r.Args[1], r.Args[2], r.Args[3], r.Args[4], r.Args[5]
	if r.Nr == unix.SYS_NANOSLEEP {
		call.Rdi = uint64(at)
	} else {
		call.Rdx = uint64(at)
	}
	ended, err := interruptSleep(ctx, t, &call)
	if err != nil {
		return fmt.Errorf("restart of system call %d: %w", r.Nr, err)
	}
	if ended {
		regs.Rax, regs.Orig_rax = 0, ^uint64(0)
		encodeRegs(&regs, th.Gpr)
	}
	return nil
}

// interruptSleep starts the call and stops it in its sleep; ended says that the
// time was over first.
func interruptSleep(ctx context.Context, t *tracer.Task, call *unix.PtraceRegs) (ended bool, err error) {
	for range maxInterruptRounds {
		if err := t.SetRegs(call); err != nil {
			return false, err
		}
		if err := t.Cont(0); err != nil {
			return false, err
		}
		sys.Nap(20 * time.Microsecond) // let it reach its sleep: otherwise it is tried again
		if err := t.Interrupt(); err != nil {
			return false, err
		}
		if _, err := t.Wait(ctx, stopBound); err != nil {
			return false, err
		}
		now, err := t.Regs()
		if err != nil {
			return false, err
		}
		switch int64(now.Rax) {
		case eRestartBlock:
			return false, nil
		case 0:
			return true, nil
		}
	}
	return false, fmt.Errorf("the sleep could not be interrupted in %d tries", maxInterruptRounds)
}

// stopBound is how long a stop that is due may take.
const stopBound = 5 * time.Second
