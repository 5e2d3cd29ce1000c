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

// Fork makes a child, or with CLONE_THREAD a thread, and takes it over: scratch
// memory, descriptors and all are there already. flags are those of clone(2),
// with the signal for the child's end in their low byte. A thread shares the
// scratch memory, so what is pushed in one takes room in all, and Reset of one
// forgets it all.
//
// Precondition: the task has the options TraceFork, TraceVfork and TraceClone.
func (o *Owner) Fork(ctx context.Context, flags uint64) (*Owner, error) {
	if flags&unix.CLONE_VFORK != 0 || o.t.Options()&births != births {
		return nil, fmt.Errorf("fork task %d with clone flags %#x and ptrace options %#x: %w",
			o.t.TID, flags, o.t.Options(), errs.ErrUnsupported)
	}
	o.born = nil
	if _, err := o.Call(ctx, unix.SYS_CLONE, flags); err != nil {
		return nil, fmt.Errorf("fork task %d: %w", o.t.TID, err)
	}
	if len(o.born) != 1 {
		return nil, fmt.Errorf("fork task %d: %d births reported", o.t.TID, len(o.born))
	}
	child := newOwner(tracer.Attached(o.born[0], o.t))
	child.options = o.options
	child.whole, child.base, child.size, child.bell = o.whole, o.base, o.size, o.bell
	if flags&unix.CLONE_VM != 0 {
		child.used, child.queued = o.used, o.queued
	}
	if err := child.firstStop(ctx); err != nil {
		return nil, fmt.Errorf("newborn task %d: %w", child.t.TID, err)
	}
	return child, nil
}

// firstStop waits for the stop that every newborn of a seized task begins with.
func (o *Owner) firstStop(ctx context.Context) error {
	st, err := o.t.Wait(ctx, ownBound)
	if err != nil {
		return err
	}
	if st.Kind != tracer.Interrupted && st.Kind != tracer.Group {
		return fmt.Errorf("stopped by %#x", int(st.Status))
	}
	o.regs, err = o.t.Regs()
	return err
}

// Exec runs the file that fd is open on, with an empty argument and no
// environment, and leaves the task stopped before its first instruction. The
// scratch memory is gone with all other mappings: the task has to be owned anew.
// What is open without close-on-exec stays; signals stay blocked.
//
// Precondition: the task has the option TraceExec and is the only thread.
func (o *Owner) Exec(ctx context.Context, fd FD) error {
	if o.t.Options()&tracer.TraceExec == 0 {
		return fmt.Errorf("exec in task %d, which does not report it: %w", o.t.TID, errs.ErrUnsupported)
	}
	defer o.Reset()
	empty, err := o.Push(make([]byte, 8))
	if err != nil {
		return err
	}
	argv, err := o.Push(binary.LittleEndian.AppendUint64(nil, uint64(empty)))
	if err != nil {
		return err
	}
	if _, err := o.Push(make([]byte, 16)); err != nil { // ends argv; an empty envp lies in it
		return err
	}
	st, err := o.last(ctx, Call{NR: unix.SYS_EXECVEAT, Args: [6]uint64{
		uint64(fd), uint64(empty), uint64(argv), uint64(argv) + 16, unix.AT_EMPTY_PATH,
	}})
	if err != nil {
		return fmt.Errorf("exec in task %d: %w", o.t.TID, err)
	}
	if st.Kind == tracer.Gone {
		return fmt.Errorf("exec in task %d: %w", o.t.TID, errs.ErrGone)
	}
	o.whole, o.base, o.size = Range{}, 0, 0
	if _, err := o.t.Deliver(ctx, 0, ownBound); err != nil {
		return err
	}
	return o.t.SetOptions(o.options)
}

// last makes a call that is not to return. Its error is the call's if it did.
func (o *Owner) last(ctx context.Context, c Call) (tracer.Stop, error) {
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
func (o *Owner) Exit(ctx context.Context, status int) error {
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
func (o *Owner) ExitBySignal(ctx context.Context, sig unix.Signal) error {
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

func (o *Owner) awaitEnd(ctx context.Context) error {
	st, err := o.t.Wait(ctx, ownBound)
	if err == nil && st.Kind != tracer.Gone {
		err = fmt.Errorf("task %d does not die: stopped by %#x", o.t.TID, int(st.Status))
	}
	return err
}
