package remote

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// System calls that stubs make on their own.
const (
	sysMunmap        = unix.SYS_MUNMAP
	sysRtSigprocmask = unix.SYS_RT_SIGPROCMASK
	sysGetpid        = unix.SYS_GETPID
	sysGettid        = unix.SYS_GETTID
	sysTgkill        = unix.SYS_TGKILL
	sysRestart       = unix.SYS_RESTART_SYSCALL
)

// The slot of a visit in the padding behind the vdso's code. The kernel never
// looks at it; it is mapped readable and executable.
//
//	  0   8  magic: a visit is going on, or was cut short by our death
//	  8   8  where to go in the end
//	 16   8  signal mask of the task
//	 24   2  al: overflow flag, ah: sign, zero, adjust, parity, carry
//	 28   4  id of the thread, in the pid namespace of the engine
//	 32 120  registers, in the order of slotRegs
//	152      code
const (
	slotSize  = 448
	slotRIP   = 8
	slotMask  = 16
	slotFlags = 24
	slotTID   = 28
	slotFirst = 32
	slotCode  = 152
	slotMagic = "stasis\x0f\x0b" // ends in ud2, should anything ever run it
)

// slotRegs are all registers but rsp, which is the task's own all the time:
// signal frames go where they would go anyway, and a small stack (a goroutine's
// has a few hundred bytes left) is never written to.
func slotRegs(r *unix.PtraceRegs) []struct {
	reg byte
	val uint64
} {
	return []struct {
		reg byte
		val uint64
	}{
		{rax, r.Rax},
		{rcx, r.Rcx},
		{rdx, r.Rdx},
		{rbx, r.Rbx},
		{rbp, r.Rbp},
		{rsi, r.Rsi},
		{rdi, r.Rdi},
		{r8, r.R8},
		{r9, r.R9},
		{r10, r.R10},
		{r11, r.R11},
		{r12, r.R12},
		{r13, r.R13},
		{r14, r.R14},
		{r15, r.R15},
	}
}

// stub is the content of a slot and the offsets to start it at and to find it at.
type stub struct {
	b        []byte
	first    int // make the call in the registers, keep its answer in r14, then as loop
	loop     int // make the r13 calls at r12
	made     int // behind each of these calls
	done     int // the task stands here when it has, and would go on with leave
	leave    int // unmap the scratch memory, r15 bytes at r14
	unmapped int // the task stands here then, and would go on where it was interrupted
}

// newStub makes the slot of a task that is to go on with registers r and the
// given mask. They are r as the kernel would have made them had it let the task
// go; see healed.
//
// With r14 and r15 zero munmap answers EINVAL, and with an error of mmap in r14
// too: so leave is harmless at any time, and the address needs no place in
// memory that would have to agree with what is mapped.
//
// The flags come back without popfq, which would need a stack: an addition makes
// the overflow flag, sahf the others that the stub changes. Calls, moves and lea
// leave them alone.
func newStub(tid int, r *unix.PtraceRegs, mask uint64) *stub {
	s := &stub{}
	a := &asm{b: make([]byte, slotFirst, slotSize)}
	copy(a.b, slotMagic)
	binary.LittleEndian.PutUint64(a.b[slotRIP:], r.Rip)
	binary.LittleEndian.PutUint64(a.b[slotMask:], mask)
	binary.LittleEndian.PutUint16(a.b[slotFlags:], packFlags(r.Eflags))
	binary.LittleEndian.PutUint32(a.b[slotTID:], uint32(tid))
	for _, v := range slotRegs(r) {
		a.b = binary.LittleEndian.AppendUint64(a.b, v.val)
	}

	s.first = len(a.b)
	a.syscall()
	a.move(r14, rax)
	s.loop = len(a.b)
	s.made = a.loop()
	s.done = a.notify()

	s.leave = len(a.b)
	a.move(rdi, r14)
	a.move(rsi, r15)
	a.imm(rax, sysMunmap)
	a.syscall()
	s.unmapped = a.notify()

	a.load(rax, slotFlags)
	a.raw(0x04, 0x7f) // add al, 0x7f
	a.raw(0x9e)       // sahf
	a.imm(rax, sysRtSigprocmask)
	a.imm(rdi, unix.SIG_SETMASK)
	a.lea(rsi, slotMask)
	a.imm(rdx, 0)
	a.imm(r10, 8)
	a.syscall()
	for i, v := range slotRegs(r) {
		a.load(v.reg, slotFirst+8*i)
	}
	a.jumpTo(slotRIP)
	s.b = a.b
	return s
}

// Bits of the flags register.
const (
	flagsLow     = 0xff
	flagOverflow = 1 << 11
)

// packFlags makes the word that becomes ax: adding 0x7f to al = 1 overflows, to
// al = 0 does not.
func packFlags(eflags uint64) uint16 {
	w := uint16(eflags&flagsLow) << 8
	if eflags&flagOverflow != 0 {
		w |= 1
	}
	return w
}

// Answers of interrupted calls that never reach a program (include/linux/errno.h).
const (
	eRestartSys      = 512
	eRestartNoIntr   = 513
	eRestartNoHand   = 514
	eRestartBlock    = 516
	syscallInsnBytes = 2
)

// healed is r as arch_do_signal_or_restart (arch/x86/kernel/signal.c) makes it
// when no signal is there to be delivered: an interrupted call is made again,
// and one with a timeout goes on by restart_syscall, whose block in the task's
// struct survives calls that don't sleep. It does not survive a signal's handler:
// then, if block is false, the call had better begin anew, unless it went on by
// restart_syscall before and nobody knows any more which it was.
func healed(r unix.PtraceRegs, block bool) unix.PtraceRegs {
	if int64(r.Orig_rax) < 0 {
		return r
	}
	switch -int64(r.Rax) {
	case eRestartSys, eRestartNoIntr, eRestartNoHand:
		r.Rax = r.Orig_rax
	case eRestartBlock:
		r.Rax = r.Orig_rax
		if block {
			r.Rax = sysRestart
		}
	default:
		return r
	}
	r.Rip -= syscallInsnBytes
	return r
}
