package remote

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/cr/tracer"
	"golang.org/x/sys/unix"
)

// births are the options without which the kernel does not attach newborns.
const births = tracer.TraceFork | tracer.TraceVfork | tracer.TraceClone

// Fork makes a child, or with CLONE_THREAD a thread, that stands where the
// parent does; [OwnForked] takes it over. flags are those of clone(2), with the
// signal for the child's end in their low byte. pid is the newborn's id in the
// task's pid namespace. Both are left stopped.
//
// Precondition: the task has the options TraceFork, TraceVfork and TraceClone.
func (o *Owned) Fork(ctx context.Context, flags uint64) (_ *tracer.Task, pid int, err error) {
	if flags&unix.CLONE_VFORK != 0 || o.t.Options()&births != births {
		return nil, 0, fmt.Errorf("fork task %d with clone flags %#x and ptrace options %#x: %w",
			o.t.TID, flags, o.t.Options(), errs.ErrUnsupported)
	}
	o.born = nil
	ret, err := o.Call(ctx, unix.SYS_CLONE, flags)
	if err != nil {
		return nil, 0, fmt.Errorf("fork task %d: %w", o.t.TID, err)
	}
	if len(o.born) != 1 {
		return nil, 0, fmt.Errorf("fork task %d: %d births reported", o.t.TID, len(o.born))
	}
	child := tracer.Attached(o.born[0], o.t)
	st, err := child.Wait(ctx, o.opt.Bound)
	if err != nil {
		return nil, 0, fmt.Errorf("newborn task %d: %w", child.TID, err)
	}
	// Every newborn of a seized task begins with such a stop.
	if st.Kind != tracer.Interrupted && st.Kind != tracer.Group {
		return nil, 0, fmt.Errorf("newborn task %d: stopped by %#x", child.TID, int(st.Status))
	}
	o.threads[child.TID] = flags&unix.CLONE_VM != 0
	return child, int(ret), nil
}

// OwnForked takes over what parent's Fork made, without any call: scratch
// memory, descriptors and all are there already. A thread shares the scratch
// memory, so what is pushed in one takes room in all, and Reset of one forgets
// it all.
func OwnForked(t *tracer.Task, parent *Owned) (*Owned, error) {
	o := newOwned(t, parent.opt)
	o.options = parent.options
	o.whole, o.base, o.size, o.bell = parent.whole, parent.base, parent.size, parent.bell
	if parent.threads[t.TID] {
		o.used, o.queued = parent.used, parent.queued
	}
	var err error
	if o.regs, err = t.Regs(); err != nil {
		return nil, fmt.Errorf("own task %d: %w", t.TID, err)
	}
	return o, nil
}

// Exec runs the file that fd is open on, with an empty argument and no
// environment, and leaves the task stopped before its first instruction. The
// scratch memory is gone with all other mappings: the task has to be owned anew.
// What is open without close-on-exec stays; signals stay blocked.
//
// Precondition: the task has the option TraceExec and is the only thread.
func (o *Owned) Exec(ctx context.Context, fd FD) error {
	if o.t.Options()&tracer.TraceExec == 0 {
		return fmt.Errorf("exec in task %d, which does not report it: %w", o.t.TID, errs.ErrUnsupported)
	}
	defer o.Reset()
	empty, err := o.Push(make([]byte, 8))
	if err != nil {
		return err
	}
	// The word that ends argv is an empty envp as well.
	argv, err := o.Push(append(binary.LittleEndian.AppendUint64(nil, uint64(empty)), make([]byte, 8)...))
	if err != nil {
		return err
	}
	st, err := o.last(ctx, Call{NR: unix.SYS_EXECVEAT, Args: [6]uint64{
		uint64(fd), uint64(empty), uint64(argv), uint64(argv) + 8, unix.AT_EMPTY_PATH,
	}})
	if err != nil {
		return fmt.Errorf("exec in task %d: %w", o.t.TID, err)
	}
	if st.Kind == tracer.Gone {
		return fmt.Errorf("exec in task %d: %w", o.t.TID, errs.ErrGone)
	}
	o.whole, o.base, o.size = Range{}, 0, 0
	if _, err := o.t.Deliver(ctx, 0, o.opt.Bound); err != nil {
		return err
	}
	return o.t.SetOptions(o.options)
}

// last makes a call that is not to return. Its error is the call's if it did.
func (o *Owned) last(ctx context.Context, c Call) (tracer.Stop, error) {
	at := o.base + Addr(alignUp(*o.used, entrySize))
	if at+entrySize > o.base+Addr(o.size) {
		return tracer.Stop{}, fmt.Errorf("no room for a call: %w", unix.ENOMEM)
	}
	b := binary.LittleEndian.AppendUint64(nil, uint64(c.NR))
	for _, arg := range c.Args {
		b = binary.LittleEndian.AppendUint64(b, arg)
	}
	if err := writeTask(o.pid, at, b); err != nil {
		return tracer.Stop{}, err
	}
	st, err := o.drive(ctx, at, 1)
	if err != nil || st.Kind != tracer.Signal {
		return st, err
	}
	var ret [8]byte
	if err := readTask(o.pid, at+entryResult, ret[:]); err != nil {
		return st, err
	}
	if _, err := result(binary.LittleEndian.Uint64(ret[:])); err != nil {
		return st, err
	}
	return st, errors.New("a call that must not return did")
}

// Exit ends the process with a status, as exit_group(2) does. It becomes a
// zombie for its parent to wait for.
func (o *Owned) Exit(ctx context.Context, status int) error {
	st, err := o.last(ctx, Call{NR: unix.SYS_EXIT_GROUP, Args: [6]uint64{uint64(status)}})
	if err != nil {
		return fmt.Errorf("exit task %d: %w", o.t.TID, err)
	}
	if st.Kind != tracer.Gone {
		return fmt.Errorf("exit task %d: stopped by %#x", o.t.TID, int(st.Status))
	}
	return nil
}

// ExitBySignal ends the process by a signal that terminates by default. It
// dumps no core, and its status does not say that it did.
func (o *Owned) ExitBySignal(ctx context.Context, sig unix.Signal) error {
	if sig == unix.SIGKILL {
		if err := unix.Kill(o.t.TID, sig); err != nil {
			return fmt.Errorf("kill task %d: %w", o.t.TID, err)
		}
		return o.awaitEnd(ctx)
	}
	act, err := o.Push(make([]byte, 32)) // struct sigaction: SIG_DFL, no flags
	if err != nil {
		return err
	}
	err = o.Batch(ctx, []Call{
		{NR: unix.SYS_PRCTL, Args: [6]uint64{unix.PR_SET_DUMPABLE, 0}},
		{NR: unix.SYS_RT_SIGACTION, Args: [6]uint64{uint64(sig), uint64(act), 0, 8}},
	})
	if err != nil {
		return err
	}
	if err := o.t.SetSigMask(^bit(sig)); err != nil {
		return err
	}
	if err := o.t.Cont(int(sig)); err != nil {
		return err
	}
	return o.awaitEnd(ctx)
}

func (o *Owned) awaitEnd(ctx context.Context) error {
	st, err := o.t.Wait(ctx, o.opt.Bound)
	if err == nil && st.Kind != tracer.Gone {
		err = fmt.Errorf("task %d does not die: stopped by %#x", o.t.TID, int(st.Status))
	}
	return err
}
