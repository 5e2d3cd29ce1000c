package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/cr/tracer"
	"golang.org/x/sys/unix"
)

// OwnOptions are what [Own] may be told. The zero value is good.
type OwnOptions struct {
	Size  int           // bytes to map, a page of code and scratch memory; 0: 256 KiB
	Bound time.Duration // longest wait for one batch; 0: a minute
}

const (
	defaultOwnSize  = 256 << 10
	defaultOwnBound = time.Minute // unmapping a big process takes its time
)

func (o OwnOptions) withDefaults() OwnOptions {
	if o.Size <= 0 {
		o.Size = defaultOwnSize
	}
	o.Size = int(max(alignUp(uint64(o.Size), pageSize), 2*pageSize))
	if o.Bound <= 0 {
		o.Bound = defaultOwnBound
	}
	return o
}

// Owned makes calls in a task that is ours to form. It is a [Caller].
//
// Between calls the task is in a ptrace stop, with all signals blocked but the
// one it says that it is done by. Its registers are of no meaning. Batches may
// do what they like, but change the signal mask or the scratch memory.
type Owned struct {
	area   // behind the page of code
	t      *tracer.Task
	opt    OwnOptions
	regs   unix.PtraceRegs // segments and stack pointer of the task
	whole  Range           // what Own mapped; zero when it is gone
	code   *ownCode
	bell   unix.Signal
	queued *uint64 // signals that batches put into the queues; shared as used is

	idle Idle // of [Together]; nil: nobody else is waiting

	born    []int        // whom events told of in the batch that runs
	threads map[int]bool // newborns that share the memory
	options int          // of ptrace, before us
}

// ownCode is what lies in the page of code: the loop, then the bell.
type ownCode struct {
	b    []byte
	done int // the task stands here when it is done
	insn int // a system call with an endless loop behind it
}

func newOwnCode() *ownCode {
	a := &asm{}
	a.loop()
	c := &ownCode{done: a.notify()}
	a.raw(0x0f, 0x0b) // ud2: nothing leads here
	c.insn = len(a.b)
	a.syscall()
	a.raw(0xeb, 0xfe) // jmp to itself
	c.b = a.b
	return c
}

// Own takes over a task and maps scratch memory at an address of the caller's
// choice, which must be free, or of the kernel's choice if at is 0. The task may
// be in any ptrace stop, that of an exec included: it is led out of the kernel
// first. PTRACE_O_TRACESYSGOOD is added to its options until Drop.
func Own(ctx context.Context, t *tracer.Task, at Addr, opt OwnOptions) (*Owned, error) {
	o := newOwned(t, opt.withDefaults())
	if err := o.take(ctx, at); err != nil {
		return nil, fmt.Errorf("own task %d: %w", t.TID, err)
	}
	return o, nil
}

func newOwned(t *tracer.Task, opt OwnOptions) *Owned {
	o := &Owned{
		t: t, opt: opt, code: newOwnCode(), queued: new(uint64),
		threads: map[int]bool{}, options: t.Options(),
	}
	o.area = area{pid: t.TID, used: new(uint64), run: o.run, peek: o.peek}
	return o
}

func (o *Owned) take(ctx context.Context, at Addr) (err error) {
	if _, err := o.t.Deliver(ctx, 0, o.opt.Bound); err != nil {
		return err
	}
	if o.regs, err = o.t.Regs(); err != nil {
		return err
	}
	if err := o.t.SetOptions(o.options | tracer.TraceSysGood); err != nil {
		return err
	}
	if err := o.chooseBell(); err != nil {
		return err
	}
	return o.mapScratch(ctx, at)
}

// mapScratch makes the first page executable only after the code is there, so
// that no page is ever both.
func (o *Owned) mapScratch(ctx context.Context, at Addr) error {
	insn, err := syscallInsn(o.t.TID)
	if err != nil {
		return err
	}
	size := uint64(o.opt.Size)
	flags := uint64(unix.MAP_PRIVATE | unix.MAP_ANONYMOUS)
	if at != 0 {
		flags |= unix.MAP_FIXED_NOREPLACE
	}
	got, err := o.single(ctx, insn, unix.SYS_MMAP, uint64(at), size,
		unix.PROT_READ|unix.PROT_WRITE, flags, ^uint64(0), 0)
	if err != nil {
		return fmt.Errorf("map scratch memory at %x: %w", uint64(at), err)
	}
	o.whole = Range{Start: Addr(got), End: Addr(got + size)}
	if err := writeTask(o.pid, o.whole.Start, o.code.b); err != nil {
		return err
	}
	_, err = o.single(ctx, insn, unix.SYS_MPROTECT, got, pageSize, unix.PROT_READ|unix.PROT_EXEC)
	if err != nil {
		return fmt.Errorf("protect code at %x: %w", got, err)
	}
	o.base, o.size = Addr(got+pageSize), size-pageSize
	return nil
}

// Task is the task that is owned.
func (o *Owned) Task() *tracer.Task { return o.t }

// Whole is all that Own mapped, for callers that clear the task's mappings.
func (o *Owned) Whole() Range { return o.whole }

// Idle has the calls of o let others go on while its task runs, as one of the pieces
// of work of [Together]; nil ends that.
func (o *Owned) Idle(idle Idle) { o.idle = idle }

// rest lets others go on, and says whether there are any.
func (o *Owned) rest() bool { return o.idle != nil && o.idle() }

// Insn is the address of a `syscall` instruction behind which the task would
// turn on the spot, for a call that the caller makes and interrupts itself.
func (o *Owned) Insn() (Addr, error) {
	if o.whole.Start == 0 {
		return 0, o.dropped()
	}
	return o.whole.Start + Addr(o.code.insn), nil
}

func (o *Owned) dropped() error {
	return fmt.Errorf("task %d has no scratch memory any more: %w", o.t.TID, os.ErrClosed)
}

// syscallInsn finds a `syscall` instruction in the vdso, which is not part of
// what a restore replaces. Bytes that only look like one do as well.
func syscallInsn(tid int) (Addr, error) {
	r, err := FindVDSO(tid)
	if err != nil {
		return 0, err
	}
	b := make([]byte, r.End-r.Start)
	if err := readTask(tid, r.Start, b); err != nil {
		return 0, err
	}
	i := bytes.Index(b, []byte{0x0f, 0x05})
	if i < 0 {
		return 0, fmt.Errorf("vdso of task %d makes no system call: %w", tid, errs.ErrUnsupported)
	}
	return r.Start + Addr(i), nil
}

// single makes one call with an instruction that is there, by stops at its entry
// and exit. A single step would force a SIGTRAP, see package tracer.
func (o *Owned) single(ctx context.Context, insn Addr, nr uintptr, args ...uint64) (uint64, error) {
	r := o.regs
	r.Rip, r.Rax, r.Orig_rax = uint64(insn), uint64(nr), ^uint64(0)
	for i, to := range []*uint64{&r.Rdi, &r.Rsi, &r.Rdx, &r.R10, &r.R8, &r.R9}[:len(args)] {
		*to = args[i]
	}
	if err := o.t.SetRegs(&r); err != nil {
		return 0, err
	}
	for stops := 0; stops < 2; {
		if err := o.t.ToSyscall(0); err != nil {
			return 0, err
		}
		o.rest()
		st, err := o.t.Wait(ctx, o.opt.Bound)
		if err != nil {
			return 0, err
		}
		switch st.Kind {
		case tracer.Syscall:
			stops++
		case tracer.Gone:
			return 0, fmt.Errorf("task died in call %d: %w", nr, errs.ErrGone)
		case tracer.Signal:
			if err := fatal(st.Signal); err != nil {
				return 0, err
			}
		}
	}
	r, err := o.t.Regs()
	if err != nil {
		return 0, err
	}
	return result(r.Rax)
}

// fatal makes an error of signals that only a fault of ours can send while
// everything is blocked. Others that come through are stops and leftovers.
func fatal(sig unix.Signal) error {
	switch sig {
	case unix.SIGSEGV, unix.SIGBUS, unix.SIGILL, unix.SIGFPE, unix.SIGSYS, unix.SIGTRAP:
		return fmt.Errorf("task ran into signal %v in a remote call", sig)
	}
	return nil
}

// chooseBell takes a signal that is not queued: while ptrace is there, any will
// be shown to us before the task learns of it, whatever it does with it.
func (o *Owned) chooseBell() error {
	sig := pick(^(forbidden | *o.queued))
	if sig == 0 {
		return fmt.Errorf("task has every signal queued: %w", errs.ErrUnsupported)
	}
	if sig == o.bell {
		return nil
	}
	if err := o.t.SetSigMask(^bit(sig)); err != nil {
		return err
	}
	o.bell = sig
	return nil
}

// peek looks for calls that queue signals, so that ours is none of them.
func (o *Owned) peek(calls []Call) error {
	for _, c := range calls {
		switch c.NR {
		case unix.SYS_RT_SIGQUEUEINFO:
			*o.queued |= 1 << (c.Args[1] - 1)
		case unix.SYS_RT_TGSIGQUEUEINFO:
			*o.queued |= 1 << (c.Args[2] - 1)
		}
	}
	return o.chooseBell()
}

// run is area.run.
func (o *Owned) run(ctx context.Context, at Addr, n int) error {
	st, err := o.drive(ctx, at, n)
	switch {
	case err != nil:
		return err
	case st.Kind == tracer.Gone:
		return fmt.Errorf("task %d died in a batch, status %#x: %w", o.t.TID, int(st.Status), errs.ErrGone)
	case st.Kind == tracer.Event:
		return fmt.Errorf("task %d made an exec in a batch", o.t.TID)
	}
	return nil
}

// drive runs n entries until the bell, an exec, or the task's end.
func (o *Owned) drive(ctx context.Context, at Addr, n int) (tracer.Stop, error) {
	if o.whole.Start == 0 {
		return tracer.Stop{}, o.dropped()
	}
	r := o.regs
	r.Rip, r.Orig_rax = uint64(o.whole.Start), ^uint64(0)
	r.R12, r.R13, r.Rbx = uint64(at), uint64(n), uint64(o.bell)
	if err := o.t.SetRegs(&r); err != nil {
		return tracer.Stop{}, err
	}
	for {
		if err := o.t.Cont(0); err != nil {
			return tracer.Stop{}, err
		}
		o.rest()
		st, err := o.t.Wait(ctx, o.opt.Bound)
		if err != nil {
			return st, errors.Join(err, o.t.Interrupt())
		}
		over, err := o.judge(st)
		if over || err != nil {
			return st, err
		}
	}
}

func (o *Owned) judge(st tracer.Stop) (over bool, err error) {
	switch st.Kind {
	case tracer.Gone:
		return true, nil
	case tracer.Event:
		return o.event(st.Event)
	case tracer.Signal:
		if st.Signal != o.bell {
			return false, fatal(st.Signal)
		}
		r, err := o.t.Regs()
		return r.Rip == uint64(o.whole.Start)+uint64(o.code.done), err
	}
	return false, nil
}

func (o *Owned) event(event int) (over bool, err error) {
	switch event {
	case unix.PTRACE_EVENT_EXEC:
		return true, nil
	case unix.PTRACE_EVENT_FORK, unix.PTRACE_EVENT_VFORK, unix.PTRACE_EVENT_CLONE:
		tid, err := o.t.EventMsg()
		o.born = append(o.born, int(tid))
		return false, err
	}
	return false, nil
}

// Drop unmaps the scratch memory and leaves the task stopped where its final
// registers and signal mask can be set; until then every signal is blocked. The
// vdso must be at its final place. One thread of a process does it for all; the
// others, before it or after, Forget.
func (o *Owned) Drop(ctx context.Context) error {
	if o.whole.Start == 0 {
		return o.dropped()
	}
	if err := o.unmap(ctx); err != nil {
		return fmt.Errorf("drop task %d: unmap scratch memory: %w", o.t.TID, err)
	}
	return o.Forget(ctx)
}

func (o *Owned) unmap(ctx context.Context) error {
	if err := o.t.SetSigMask(^uint64(0)); err != nil {
		return err
	}
	insn, err := syscallInsn(o.t.TID)
	if err != nil {
		return err
	}
	size := uint64(o.whole.End - o.whole.Start)
	_, err = o.single(ctx, insn, unix.SYS_MUNMAP, uint64(o.whole.Start), size)
	return err
}

// Forget ends the ownership as Drop does, but leaves the scratch memory.
func (o *Owned) Forget(ctx context.Context) error {
	o.whole, o.base, o.size, o.bell = Range{}, 0, 0, 0
	if err := o.t.SetSigMask(^uint64(0)); err != nil {
		return fmt.Errorf("drop task %d: %w", o.t.TID, err)
	}
	// At a call's exit the kernel does not look whether the registers are those
	// of a call to be restarted; in get_signal it does.
	if _, err := o.t.Deliver(ctx, 0, o.opt.Bound); err != nil {
		return fmt.Errorf("drop task %d: %w", o.t.TID, err)
	}
	return o.t.SetOptions(o.options)
}
