package remote

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/cr/fault"
	"github.com/stasis-cr/stasis/cr/tracer"
	"golang.org/x/sys/unix"
)

// runAt lets the task run with registers r until it rings the bell at offset
// end of the slot, and returns its registers then. When it fails, the task is
// stopped somewhere on its way, from where runOn goes on.
func (v *Visitor) runAt(ctx context.Context, r unix.PtraceRegs, end int) (unix.PtraceRegs, error) {
	v.arrived, v.owed = false, 0
	if err := v.t.SetRegs(&r); err != nil {
		return r, err
	}
	if err := v.t.Cont(0); err != nil {
		return r, err
	}
	if err := fault.Point("visit-running"); err != nil {
		return r, errors.Join(err, v.catch(ctx, end))
	}
	return v.follow(ctx, end)
}

// runOn lets a task that was caught on its way go on to offset end of the slot.
func (v *Visitor) runOn(ctx context.Context, end int) (unix.PtraceRegs, error) {
	if v.arrived {
		v.arrived = false
		return v.t.Regs()
	}
	sig := v.owed
	v.owed = 0
	if err := v.t.Cont(sig); err != nil {
		return unix.PtraceRegs{}, err
	}
	return v.follow(ctx, end)
}

// follow waits until a running task rings the bell at offset end.
func (v *Visitor) follow(ctx context.Context, end int) (r unix.PtraceRegs, err error) {
	v.idle()
	for {
		st, err := v.t.Wait(ctx, v.opt.Bound)
		if err != nil {
			return r, errors.Join(err, v.catch(ctx, end))
		}
		r, over, sig, err := v.judge(st, end)
		if over || err != nil {
			return r, err
		}
		if err := v.t.Cont(sig); err != nil {
			return r, err
		}
	}
}

// catch stops a task that didn't answer, so that it can be led on or back. The
// stop may be any that was due: it is judged as on the way.
func (v *Visitor) catch(ctx context.Context, end int) error {
	if err := v.t.Interrupt(); err != nil {
		return err
	}
	st, err := v.t.Wait(context.WithoutCancel(ctx), v.opt.Bound)
	if err != nil {
		return err
	}
	_, v.arrived, v.owed, err = v.judge(st, end)
	return err
}

// judge says what a stop means: that the task is done, or with which signal it
// has to go on. SIGSTOP, which can't be blocked, is delivered: the stop of the
// process begins, the visited thread goes on to run because ptrace lets it, and
// the kernel makes it join the stop when it is detached.
func (v *Visitor) judge(st tracer.Stop, end int) (r unix.PtraceRegs, over bool, sig int, err error) {
	if st.Kind == tracer.Gone {
		return r, false, 0, fmt.Errorf("task died in a visit: %w", errs.ErrGone)
	}
	if r, err = v.t.Regs(); err != nil || st.Kind != tracer.Signal {
		return r, false, 0, err
	}
	switch st.Signal {
	case v.bell.sig:
		over = r.Rip == uint64(v.slot)+uint64(end)
		return r, over, 0, v.hold(over || v.paused(&r))
	case unix.SIGSTOP:
		return r, false, int(st.Signal), nil
	}
	return r, false, 0, fmt.Errorf("signal %v in a visit, where it is blocked: it comes from a fault", st.Signal)
}

// siTkill is SI_TKILL: sent to one thread by tgkill, as the bell is.
const siTkill = -6

func sigCode(info []byte) int32 { return int32(binary.NativeEndian.Uint32(info[8:])) }

// hold keeps a guarded signal that is not our bell for Close to deliver. The
// bell is told by where the task stands; a signal from elsewhere that arrived
// just there and swallowed the bell, since standard signals don't queue, is told
// by its code.
func (v *Visitor) hold(atBell bool) error {
	if !v.bell.guarded {
		return nil
	}
	info, err := v.t.SigInfo()
	if err != nil {
		return err
	}
	if !atBell || sigCode(info) != siTkill {
		v.held = info
	}
	return nil
}

// write puts b into the slot. /proc/PID/mem writes through the protection and
// makes the page a private copy; where that is forbidden (proc_mem.force_override
// since Linux 6.12) PTRACE_POKEDATA does it word by word.
func (v *Visitor) write(b []byte) error {
	n, err := unix.Pwrite(v.mem, b, int64(v.slot))
	if err == nil && n == len(b) {
		return nil
	}
	padded := append(bytes.Clone(b), make([]byte, -len(b)&7)...)
	if _, e := unix.PtracePokeData(v.t.TID, uintptr(v.slot), padded); e != nil {
		return fmt.Errorf("write to the vdso of task %d: %w", v.t.TID, errors.Join(err, e))
	}
	return nil
}

// abortRSeq does to r what the kernel does when it resumes a task that was
// preempted within a restartable sequence (rseq_ip_fixup in kernel/rseq.c). The
// kernel itself could no longer: it forgets the sequence when it resumes the
// task elsewhere.
func abortRSeq(t *tracer.Task, r *unix.PtraceRegs) error {
	rs, err := t.RSeq()
	if errors.Is(err, unix.EIO) || errors.Is(err, unix.EINVAL) { // kernel without it
		return nil
	}
	if err != nil || rs.Pointer == 0 {
		return err
	}
	// struct rseq: cpu_id_start, cpu_id, rseq_cs.
	var area [16]byte
	if err := readTask(t.TID, Addr(rs.Pointer), area[:]); err != nil {
		return err
	}
	at := binary.LittleEndian.Uint64(area[8:])
	if at == 0 {
		return nil
	}
	// struct rseq_cs: version, flags, start_ip, post_commit_offset, abort_ip.
	var cs [32]byte
	if err := readTask(t.TID, Addr(at), cs[:]); err != nil {
		return err
	}
	start := binary.LittleEndian.Uint64(cs[8:])
	length := binary.LittleEndian.Uint64(cs[16:])
	if r.Rip-start < length {
		r.Rip = binary.LittleEndian.Uint64(cs[24:])
	}
	return nil
}
