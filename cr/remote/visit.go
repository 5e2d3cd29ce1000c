package remote

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/cr/fault"
	"github.com/stasis-cr/stasis/cr/procfs"
	"github.com/stasis-cr/stasis/cr/tracer"
	"golang.org/x/sys/unix"
)

// VisitOptions are what a visit may be told. The zero value is good.
type VisitOptions struct {
	Scratch int            // bytes of scratch memory; 0: 64 KiB
	VDSO    Range          // where the vdso is, from FindVDSO; zero: look
	Status  *procfs.Status // of the thread, read since it is stopped; nil: look
	Bound   time.Duration  // longest wait for one batch; 0: 10 seconds
	Idle    Idle           // from [Together]; nil: the visit is the only one
}

const (
	defaultScratch = 64 << 10
	defaultBound   = 10 * time.Second
	pageSize       = 4096
)

func (o VisitOptions) withDefaults() VisitOptions {
	if o.Scratch <= 0 {
		o.Scratch = defaultScratch
	}
	o.Scratch = int(alignUp(uint64(o.Scratch), pageSize))
	if o.Bound <= 0 {
		o.Bound = defaultBound
	}
	return o
}

// Visitor makes calls in a task that must live on. It is a [Caller].
//
// The steps, and what happens to the task if we die behind them:
//
//	written   a slot of the vdso's padding holds the stub; nobody goes there
//	entered   the registers point at the stub, which would find nothing to do
//	          and lead back to the interrupted place
//	masked    all signals but the bell are blocked; the stub sets the old mask
//	mapped    scratch memory exists; the stub unmaps it first
//	...       batches: the stub ends the one it is at, then leaves as above
//	unmapped  the stub would set mask and registers
//	unmasked  likewise, with nothing to change in the mask
//	left      the task stands where it was interrupted
//	erased    the slot is zero again
//
// Between batches the task stands right behind the call that rang the bell,
// where it goes on with leaving.
type Visitor struct {
	area
	t     *tracer.Task
	opt   VisitOptions
	mem   int // /proc/TID/mem, open; -1 when closed
	slot  Addr
	stub  *stub
	bell  bell
	saved unix.PtraceRegs
	mask  uint64
	held  []byte // siginfo_t of a guarded signal from elsewhere, to be delivered
	pause *pause // of the batch that runs; nil: it has none

	options int  // of ptrace, before us
	arrived bool // a task that was caught had rung the bell
	owed    int  // the signal that it is to go on with otherwise
	entered bool // the registers are not the task's own
	masked  bool
}

// Visit prepares a task for calls. Close ends the visit; between the two the
// task is in a ptrace stop whenever no method runs.
//
// Precondition: the task is stopped by [tracer.Task.Halt], or by a visit's
// Close, and no other thread of its process is being visited but by [Together]. A
// signal in hand would be dropped.
//
// [errs.ErrUnsupported]: the task runs 32-bit code, or has no vdso with room, or
// no signal to spare.
func Visit(ctx context.Context, t *tracer.Task, opt VisitOptions) (_ *Visitor, err error) {
	v := &Visitor{t: t, opt: opt.withDefaults(), mem: -1, options: t.Options()}
	v.area = area{pid: t.TID, used: new(uint64), run: v.runBatch}
	defer func() {
		if err != nil {
			err = errors.Join(err, v.Close(ctx))
		}
	}()
	if err := v.look(ctx); err != nil {
		return nil, fmt.Errorf("visit task %d: %w", t.TID, err)
	}
	if err := v.enter(ctx); err != nil {
		return nil, fmt.Errorf("visit task %d: %w", t.TID, err)
	}
	return v, nil
}

// Regs are the registers the task was interrupted with, and will go on with. In
// a restartable sequence the kernel's abort has been done to them.
func (v *Visitor) Regs() unix.PtraceRegs { return v.saved }

// SigMask is the signal mask to come back to, as [tracer.Task.SigMask] gave it.
func (v *Visitor) SigMask() uint64 { return v.mask }

// look reads what must be known, and changes nothing.
func (v *Visitor) look(ctx context.Context) (err error) {
	if v.opt.VDSO.Start == 0 {
		if v.opt.VDSO, err = FindVDSO(v.t.TID); err != nil {
			return err
		}
	}
	for v.slot, err = v.findSlot(ctx); errors.Is(err, errNoSlot) && v.idle(); {
		v.slot, err = v.findSlot(ctx) // another visit may have left its own
	}
	if err != nil {
		return err
	}
	if v.mask, err = v.t.SigMask(); err != nil {
		return err
	}
	st, err := v.status()
	if err != nil {
		return err
	}
	if v.bell, err = chooseBell(st, v.mask); err != nil {
		return err
	}
	if v.saved, err = v.t.Regs(); err != nil {
		return err
	}
	if v.saved.Cs != cs64 {
		return fmt.Errorf("task runs 32-bit code: %w", errs.ErrUnsupported)
	}
	if err := abortRSeq(v.t, &v.saved); err != nil {
		return err
	}
	if st.seccomp {
		err = v.t.SetOptions(v.options | tracer.SuspendSeccomp)
	}
	return err
}

// status is what must be known of the thread's signals.
func (v *Visitor) status() (status, error) {
	if s := v.opt.Status; s != nil {
		return status{
			pending: s.SigPnd | s.ShdPnd, blocked: s.SigBlk, ignored: s.SigIgn, caught: s.SigCgt, seccomp: s.Seccomp != 0,
		}, nil
	}
	return readStatus(v.t.TID)
}

// idle lets other visits go on while this one has to wait. It says whether there
// are any.
func (v *Visitor) idle() bool { return v.opt.Idle != nil && v.opt.Idle() }

// cs64 is __USER_CS (arch/x86/include/asm/segment.h).
const cs64 = 0x33

// enter goes up to "mapped" in the order that Visitor describes.
func (v *Visitor) enter(ctx context.Context) (err error) {
	h := healed(v.saved, !v.bell.loud)
	v.stub = newStub(v.t.TID, &h, v.mask)
	path := fmt.Sprintf("/proc/%d/mem", v.t.TID)
	if v.mem, err = unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	if err := v.write(v.stub.b); err != nil {
		return err
	}
	if err := fault.Point("visit-written"); err != nil {
		return err
	}
	r := v.regsAt(v.stub.loop)
	v.entered = true
	if err := v.t.SetRegs(&r); err != nil {
		return err
	}
	if err := fault.Point("visit-entered"); err != nil {
		return err
	}
	v.masked = true
	if err := v.t.SetSigMask(^bit(v.bell.sig)); err != nil {
		return err
	}
	if err := fault.Point("visit-masked"); err != nil {
		return err
	}
	return v.mapScratch(ctx)
}

// regsAt are registers to start the stub with. Those that matter to the kernel
// beyond it, rsp and the segments, are the task's; orig_rax -1 says that no call
// is to be restarted.
func (v *Visitor) regsAt(offset int) unix.PtraceRegs {
	r := v.saved
	r.Rip = uint64(v.slot) + uint64(offset)
	r.Orig_rax = ^uint64(0)
	r.Rbx = uint64(v.bell.sig)
	r.R12, r.R13 = 0, 0
	r.R14, r.R15 = uint64(v.base), v.size
	return r
}

func (v *Visitor) mapScratch(ctx context.Context) error {
	r := v.regsAt(v.stub.first)
	r.R15 = uint64(v.opt.Scratch)
	r.Rax, r.Rdi, r.Rsi = unix.SYS_MMAP, 0, r.R15
	r.Rdx = unix.PROT_READ | unix.PROT_WRITE
	r.R10 = unix.MAP_PRIVATE | unix.MAP_ANONYMOUS
	r.R8, r.R9 = ^uint64(0), 0
	size := r.R15
	r, err := v.runAt(ctx, r, v.stub.done)
	if err != nil {
		// The call has been made or will be: Close needs to know what to unmap.
		var again error
		if r, again = v.runOn(context.WithoutCancel(ctx), v.stub.done); again != nil {
			return errors.Join(err, again)
		}
	}
	at, e := result(r.R14)
	if e != nil {
		return errors.Join(err, fmt.Errorf("map scratch memory: %w", e))
	}
	v.base, v.size = Addr(at), size
	return errors.Join(err, fault.Point("visit-mapped"))
}

func (v *Visitor) runBatch(ctx context.Context, at Addr, n int) error {
	if v.base == 0 {
		return fmt.Errorf("visit of task %d is over: %w", v.t.TID, os.ErrClosed)
	}
	if err := fault.Point("visit-batch-written"); err != nil {
		return err
	}
	r := v.regsAt(v.stub.loop)
	r.R12, r.R13 = uint64(at), uint64(n)
	if _, err := v.runAt(ctx, r, v.stub.done); err != nil {
		return err
	}
	return fault.Point("visit-batch-done")
}

// Close gives the task back as it was, in a ptrace stop. It does all it can
// even when ctx is over or something failed; it may be called twice.
func (v *Visitor) Close(ctx context.Context) (err error) {
	ctx = context.WithoutCancel(ctx)
	if v.base != 0 {
		err = errors.Join(err, v.unmap(ctx))
	}
	err = errors.Join(err, v.leave(ctx))
	if v.mem >= 0 {
		err = errors.Join(err, unix.Close(v.mem))
		v.mem = -1
	}
	if v.t.Options() != v.options && !errors.Is(err, errs.ErrGone) {
		err = errors.Join(err, v.t.SetOptions(v.options))
	}
	if err != nil {
		return fmt.Errorf("leave task %d: %w", v.t.TID, err)
	}
	return nil
}

func (v *Visitor) unmap(ctx context.Context) error {
	r := v.regsAt(v.stub.leave)
	v.base, v.size = 0, 0
	err := fault.Point("visit-closing")
	if _, e := v.runAt(ctx, r, v.stub.unmapped); e != nil {
		// The memory must go in any case: the task is let run up to the place.
		_, again := v.runOn(ctx, v.stub.unmapped)
		return errors.Join(err, e, again)
	}
	return errors.Join(err, fault.Point("visit-unmapped"))
}

// leave goes from "unmapped" to "erased".
func (v *Visitor) leave(ctx context.Context) (err error) {
	if v.masked {
		v.masked = false
		if err := v.t.SetSigMask(v.mask); err != nil {
			return err
		}
		err = fault.Point("visit-unmasked")
	}
	if !v.entered {
		return err
	}
	v.entered = false
	if e := v.t.SetRegs(&v.saved); e != nil {
		return errors.Join(err, e)
	}
	err = errors.Join(err, fault.Point("visit-left"), v.write(make([]byte, slotSize)),
		fault.Point("visit-erased"))
	return errors.Join(err, v.deliver(ctx))
}

// deliver hands over the signal that was held back, the kernel's own way: with
// its siginfo, or queued if the mask blocks it (ptrace_signal in
// kernel/signal.c).
func (v *Visitor) deliver(ctx context.Context) error {
	if v.held == nil {
		return nil
	}
	info := v.held
	v.held = nil
	if err := v.t.SetSigInfo(info); err != nil {
		return err
	}
	_, err := v.t.Deliver(ctx, int(v.bell.sig), v.opt.Bound)
	return err
}
