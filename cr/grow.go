package cr

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/cr/fault"
	"github.com/stasis-cr/stasis/cr/mem"
	"github.com/stasis-cr/stasis/cr/procfs"
	"github.com/stasis-cr/stasis/cr/remote"
	"github.com/stasis-cr/stasis/cr/task"
	"github.com/stasis-cr/stasis/cr/tracer"
)

// member is one process of the tree that is being rebuilt.
type member struct {
	rec     *blob.Process // nil: a helper that is not in the image
	mm      *blob.MM      // nil: a helper or a zombie
	hostPID int
	exe     uint32 // file id of the program it runs; 0: the blank's own
	own     *remote.Owned
	threads []*worker // the leader first
	mapped  bool      // it has the mappings of the image
	lacks   lack      // of its memory, once it is mapped
	filled  bool      // its memory is complete
	left    bool      // it has its own registers again: no calls any more
	gone    bool      // it is not traced any more
}

// idle has the calls in all threads of m let others go on meanwhile, or not with nil.
func (m *member) idle(idle remote.Idle) {
	m.own.Idle(idle)
	for _, w := range m.threads {
		w.own.Idle(idle)
	}
}

// worker is one thread on its way back.
type worker struct {
	rec *blob.Thread
	own *remote.Owned
}

// grow runs the steps of a plan: afterwards every process of the image exists
// with its pid, parent, session and group, running nothing.
func (r *restorer) grow(ctx context.Context, steps []task.Step) error {
	if err := r.adoptInit(ctx); err != nil {
		return err
	}
	for _, s := range steps {
		if err := r.step(ctx, s); err != nil {
			return &errs.Error{Op: "restore", PID: int(s.PID), Err: err}
		}
	}
	return nil
}

// adoptInit makes the blank the init of the image: the right program, and a
// channel for descriptors that all its descendants inherit.
func (r *restorer) adoptInit(ctx context.Context) (err error) {
	rec := r.processes[1]
	m := &member{rec: rec, mm: r.mms[rec.Mm], hostPID: r.b.pid}
	r.members[1] = m
	if m.own, err = r.takeOver(ctx, r.b.Task, m.mm); err != nil {
		return err
	}
	if r.born, err = task.BornAs(ctx, r.b.Task, m.own, r.filters); err != nil {
		return err
	}
	if err := r.replaceProfile(); err != nil {
		return err
	}
	if r.channel, err = remote.OpenChannel(ctx, m.own, r.channelFD); err != nil {
		return err
	}
	same, err := r.runs(ctx, m.hostPID, m.mm.Exe)
	if err != nil {
		return err
	}
	if same {
		m.exe = m.mm.Exe
		return nil
	}
	return r.exec(ctx, m)
}

// takeOver begins remote calls in a task that has just executed a program. The
// scratch memory lies where neither the task nor the image has anything.
func (r *restorer) takeOver(ctx context.Context, t *tracer.Task, mm *blob.MM) (*remote.Owned, error) {
	maps, err := procfs.ReadMaps(t.TID)
	if err != nil {
		return nil, err
	}
	used := make([]mem.Region, 0, len(maps))
	for _, m := range maps {
		used = append(used, mem.Region{Start: m.Start, End: m.End})
	}
	// The children of this task inherit the scratch memory, whatever their own
	// mappings will be.
	all := [][]mem.Region{used, mem.Regions(mm)}
	for _, other := range r.mms {
		all = append(all, mem.Regions(other))
	}
	at, err := mem.Hole(scratchSize+viaSize, all...)
	if err != nil {
		return nil, err
	}
	return remote.Own(ctx, t, at, remote.OwnOptions{Size: scratchSize})
}

// scratchSize is the memory that calls in a task work with, in bytes.
const scratchSize = 256 << 10

// viaSize is room behind the scratch memory through which the vdso moves.
const viaSize = 1 << 20

// runs says whether a process runs the file with the given id.
func (r *restorer) runs(ctx context.Context, hostPID int, file uint32) (bool, error) {
	f, err := r.objects.Open(ctx, file)
	if err != nil {
		return false, err
	}
	var have, want unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d/exe", hostPID), &have); err != nil {
		return false, fmt.Errorf("exe: %w", err)
	}
	if err := unix.Fstat(int(f.Fd()), &want); err != nil {
		return false, fmt.Errorf("exe: %w", err)
	}
	return have.Dev == want.Dev && have.Ino == want.Ino, nil
}

// exec makes a member run the program of its image: /proc/PID/exe can't be
// changed otherwise without a capability in the task.
func (r *restorer) exec(ctx context.Context, m *member) error {
	f, err := r.objects.Open(ctx, m.mm.Exe)
	if err != nil {
		return err
	}
	fds, err := r.channel.Send(ctx, m.own, []*os.File{f})
	if err != nil {
		return err
	}
	t := m.own.Task()
	if err := m.own.Exec(ctx, fds[0]); err != nil {
		return fmt.Errorf("execute %s: %w", f.Name(), err)
	}
	m.exe = m.mm.Exe
	if m.own, err = r.takeOver(ctx, t, m.mm); err != nil {
		return err
	}
	_, err = m.own.Call(ctx, unix.SYS_CLOSE, uint64(fds[0]))
	return err
}

func (r *restorer) step(ctx context.Context, s task.Step) error {
	m := r.members[s.PID]
	switch s.Kind {
	case task.StepFork:
		return r.fork(ctx, r.members[s.Parent], s.PID)
	case task.StepSetsid:
		_, err := m.own.Call(ctx, unix.SYS_SETSID)
		return wrap("setsid", err)
	case task.StepSetpgid:
		_, err := m.own.Call(ctx, unix.SYS_SETPGID, 0, uint64(s.Group))
		return wrap(fmt.Sprintf("setpgid %d", s.Group), err)
	case task.StepSubreaper:
		_, err := m.own.Call(ctx, unix.SYS_PRCTL, unix.PR_SET_CHILD_SUBREAPER, 1)
		return wrap("prctl PR_SET_CHILD_SUBREAPER", err)
	case task.StepExit:
		return r.endHelper(ctx, m, r.members[s.Parent], s.PID)
	}
	return fmt.Errorf("step %d: unknown", s.Kind)
}

func wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}

// fork has parent bear a child with a chosen pid. If they share memory, the
// parent's is completed before, and the child's mappings are made at once.
func (r *restorer) fork(ctx context.Context, parent *member, pid int32) error {
	m := &member{rec: r.processes[pid], exe: parent.exe}
	signal := uint64(unix.SIGCHLD)
	if m.rec != nil {
		signal = uint64(m.rec.ExitSignal)
		m.mm = r.mms[m.rec.Mm]
	}
	var in *mem.Inheritance
	if r.lazy == nil { // to share memory it must be there
		in = inheritance(parent, m)
	}
	if in != nil {
		if err := r.complete(ctx, parent); err != nil {
			return err
		}
	}
	if err := r.setter.Set(int(pid) - 1); err != nil {
		return err
	}
	own, got, err := bearHeir(ctx, parent, in, signal)
	if err != nil {
		return err
	}
	if got != int(pid) {
		return fmt.Errorf("pid %d is taken in the new container: got %d", pid, got)
	}
	m.own, m.hostPID = own, own.Task().TID
	r.members[pid] = m
	if err := fault.Point("restore-forked"); err != nil {
		return err
	}
	switch {
	case in != nil:
		return r.settle(ctx, m, in)
	case m.mm == nil || m.mm.Exe == m.exe:
		return nil
	}
	return r.exec(ctx, m)
}

// bear forks a task and takes the newborn over.
func bear(ctx context.Context, parent *remote.Owned, flags uint64) (*remote.Owned, int, error) {
	t, pid, err := parent.Fork(ctx, flags)
	if err != nil {
		return nil, 0, err
	}
	own, err := remote.OwnForked(t, parent)
	return own, pid, err
}

// endHelper ends a process that is not in the image, and its trace in its
// parent.
func (r *restorer) endHelper(ctx context.Context, m, parent *member, pid int32) error {
	if err := m.own.Exit(ctx, 0); err != nil {
		return err
	}
	delete(r.members, pid)
	_, err := parent.own.Call(ctx, unix.SYS_WAIT4, uint64(pid), 0, 0, 0)
	return wrap(fmt.Sprintf("wait for helper %d", pid), err)
}
