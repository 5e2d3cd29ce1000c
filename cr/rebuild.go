package cr

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/blob/dir"
	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/cr/mem"
	"github.com/stasis-cr/stasis/cr/object"
	"github.com/stasis-cr/stasis/cr/procfs"
	"github.com/stasis-cr/stasis/cr/remote"
	"github.com/stasis-cr/stasis/cr/sys"
	"github.com/stasis-cr/stasis/cr/task"
	"github.com/stasis-cr/stasis/namespaces"
)

// restorer turns a blank into the container of an image.
type restorer struct {
	o     *RestoreOptions
	image *dir.Dir
	img   *blob.Image
	b     *blank
	log   *slog.Logger

	processes map[int32]*blob.Process
	mms       map[uint32]*blob.MM
	contents  map[uint32]*blob.Contents
	tables    map[uint32]*blob.FDTable
	members   map[int32]*member

	pages     *mem.Pages
	objects   *object.Restorer
	filters   *task.Filters
	born      *task.Born
	setter    *namespaces.PIDSetter
	channel   *remote.Channel
	channelFD remote.FD
	shared    map[uint32]*sharedMemory // by contents id
	lazy      *lazily                  // nil: memory is filled before the container goes on
}

func newRestorer(ctx context.Context, o *RestoreOptions, image *dir.Dir, pages *mem.Pages, b *blank, steps []task.Step,
	log *slog.Logger,
) (_ *restorer, err error) {
	img := image.Image()
	r := &restorer{
		o: o, image: image, img: img, b: b, log: log,
		processes: map[int32]*blob.Process{}, mms: map[uint32]*blob.MM{}, contents: map[uint32]*blob.Contents{}, shared: map[uint32]*sharedMemory{},
		tables: map[uint32]*blob.FDTable{}, members: map[int32]*member{},
		pages: pages, filters: task.NewFilters(img.Seccomp), channelFD: object.FreeFD(img.FDTables),
	}
	taken := map[int]bool{} // numbers that the tasks, and helpers on the way, are going to have
	for _, s := range steps {
		taken[int(s.PID)] = true
	}
	for _, p := range img.Processes {
		r.processes[p.Pid] = p
		taken[int(p.Pid)], taken[int(p.Pgid)], taken[int(p.Sid)] = true, true, true
		for _, t := range p.Threads {
			taken[int(t.Tid)] = true
		}
	}
	for _, m := range img.MMs {
		r.mms[m.Id] = m
	}
	for _, c := range img.Contents {
		r.contents[c.Id] = c
	}
	for _, t := range img.FDTables {
		r.tables[t.Id] = t
	}
	defer func() { //nolint:contextcheck // also when ctx has ended
		if err != nil {
			err = errors.Join(err, r.close())
		}
	}()
	r.objects, err = object.NewRestorer(object.RestoreEnv{
		InitPID: b.pid, Stdio: b.stdio, Files: img.Files, ReadContents: r.readContents,
		HostPID: r.hostPID, Enter: namespaces.Enter, FrozenAt: img.Host.CreatedNs,
	})
	if err != nil {
		return nil, err
	}
	r.setter, err = namespaces.StartPIDSetter(ctx, b.pid, func(pid int) bool { return taken[pid] })
	return r, err
}

// close gives up what only the restore itself needs. The members live on, or
// have been killed.
func (r *restorer) close() error {
	all := r.closeShared()
	if r.setter != nil {
		all = errors.Join(all, r.setter.Close())
		r.setter = nil
	}
	if r.channel != nil {
		all = errors.Join(all, r.channel.Close())
		r.channel = nil
	}
	if r.objects != nil {
		all = errors.Join(all, r.objects.Close())
		r.objects = nil
	}
	return all
}

func (r *restorer) readContents(ctx context.Context, id uint32, f *os.File) error {
	c := r.contents[id]
	if c == nil {
		return fmt.Errorf("contents %d: %w", id, errs.ErrCorrupt)
	}
	return mem.RestoreContents(ctx, c, r.pages, f)
}

func (r *restorer) hostPID(pid int) int {
	if m := r.members[int32(pid)]; m != nil {
		return m.hostPID
	}
	return 0
}

// alive lists the members that run, in the image's order.
func (r *restorer) alive() []*member {
	var out []*member
	for _, p := range r.img.Processes {
		if m := r.members[p.Pid]; m != nil && p.State != blob.Process_STATE_ZOMBIE {
			out = append(out, m)
		}
	}
	return out
}

// each runs f for every living member and names the member in the error.
func (r *restorer) each(ctx context.Context, f func(context.Context, *member) error) error {
	for _, m := range r.alive() {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if err := f(ctx, m); err != nil {
			return &errs.Error{Op: "restore", PID: int(m.rec.Pid), Err: err}
		}
	}
	return nil
}

// membersAtOnce is for how many members together works at a time: what a task takes to
// wake up and to come to rest again is about twice what we have to do for it.
const membersAtOnce = 4

// together is each for some members, several at a time: f may do nothing to another
// member than its own but what no remote call comes between.
func (r *restorer) together(ctx context.Context, members []*member, f func(context.Context, *member) error) error {
	ready := func(int) bool { return true }
	return remote.Together(len(members), membersAtOnce, ready, func(k int, idle remote.Idle) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		m := members[k]
		m.idle(idle)
		defer m.idle(nil)
		if err := f(ctx, m); err != nil {
			return &errs.Error{Op: "restore", PID: int(m.rec.Pid), Err: err}
		}
		return nil
	})
}

// installAll gives every process its descriptors, directories and locks.
func (r *restorer) installAll(ctx context.Context) error {
	if err := r.together(ctx, r.alive(), r.directories); err != nil {
		return err
	}
	err := r.together(ctx, r.alive(), func(ctx context.Context, m *member) error {
		return r.objects.Install(ctx, m.own, r.channel, r.tables[m.rec.FdTable])
	})
	if err != nil {
		return err
	}
	return r.together(ctx, r.alive(), func(ctx context.Context, m *member) error {
		return r.objects.Link(ctx, r.linked(m))
	})
}

func (r *restorer) linked(m *member) object.Process {
	return object.Process{PID: int(m.rec.Pid), Caller: m.own, Table: r.tables[m.rec.FdTable], Locks: m.rec.Locks}
}

// directories sets root and working directory.
func (r *restorer) directories(ctx context.Context, m *member) error {
	fs := m.rec.Fs
	if fs.Root != 0 {
		err := r.at(ctx, m, fs.Root, func(fd remote.FD) error {
			if _, err := m.own.Call(ctx, unix.SYS_FCHDIR, uint64(fd)); err != nil {
				return fmt.Errorf("root directory: %w", err)
			}
			dot, err := m.own.Push([]byte(".\x00"))
			if err != nil {
				return err
			}
			defer m.own.Reset()
			_, err = m.own.Call(ctx, unix.SYS_CHROOT, uint64(dot))
			return wrap("chroot", err)
		})
		if err != nil {
			return err
		}
	}
	return r.at(ctx, m, fs.Cwd, func(fd remote.FD) error {
		_, err := m.own.Call(ctx, unix.SYS_FCHDIR, uint64(fd))
		return wrap("working directory", err)
	})
}

// at lends a member the file with the given id.
func (r *restorer) at(ctx context.Context, m *member, file uint32, f func(remote.FD) error) error {
	open, err := r.objects.Open(ctx, file)
	if err != nil {
		return err
	}
	fds, err := r.channel.Send(ctx, m.own, []*os.File{open})
	if err != nil {
		return err
	}
	err = f(fds[0])
	_, e := m.own.Call(ctx, unix.SYS_CLOSE, uint64(fds[0]))
	return errors.Join(err, e)
}

// threadFlags make a thread as pthread_create does, but for the addresses that
// are set later.
const threadFlags = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_THREAD | unix.CLONE_SYSVSEM

// threads makes every thread with its old id.
func (r *restorer) threads(ctx context.Context) error {
	return r.each(ctx, func(ctx context.Context, m *member) error {
		for i, rec := range m.rec.Threads {
			own := m.own
			if i > 0 {
				if err := r.setter.Set(int(rec.Tid) - 1); err != nil {
					return err
				}
				var got int
				var err error
				if own, got, err = bear(ctx, m.own, threadFlags); err != nil {
					return err
				}
				if got != int(rec.Tid) {
					return fmt.Errorf("thread id %d is taken in the new container: got %d", rec.Tid, got)
				}
			}
			m.threads = append(m.threads, &worker{rec, own})
		}
		return nil
	})
}

// state gives processes and threads what is their own.
func (r *restorer) state(ctx context.Context) error {
	return r.together(ctx, r.alive(), func(ctx context.Context, m *member) error {
		if err := task.RestoreProcess(ctx, m.hostPID, m.own, r.born, m.rec); err != nil {
			return err
		}
		insn, err := m.own.Insn()
		if err != nil {
			return err
		}
		for _, w := range m.threads {
			if err := task.RestoreThread(ctx, w.own.Task(), w.own, r.born, r.filters, m.rec, w.rec, insn); err != nil {
				return &errs.Error{Obj: errs.Name(fmt.Sprintf("thread %d", w.rec.Tid)), Err: err}
			}
		}
		return nil
	})
}

// zombies ends those that had ended.
func (r *restorer) zombies(ctx context.Context) error {
	for _, p := range r.img.Processes {
		if p.State != blob.Process_STATE_ZOMBIE {
			continue
		}
		m := r.members[p.Pid]
		err := task.RestoreZombie(ctx, m.own, r.born, p)
		if err == nil {
			if ws := unix.WaitStatus(p.ExitCode); ws.Signaled() {
				err = m.own.ExitBySignal(ctx, ws.Signal())
			} else {
				err = m.own.Exit(ctx, ws.ExitStatus())
			}
		}
		if err != nil {
			return &errs.Error{Op: "restore", PID: int(p.Pid), Err: err}
		}
	}
	return nil
}

// finish queues signals, arms timers and takes the channel away.
func (r *restorer) finish(ctx context.Context) error {
	if last := int(r.img.Container.NsLastPid); last > 0 {
		if err := r.setter.Set(last); err != nil {
			return err
		}
	}
	if err := r.setter.Close(); err != nil {
		return err
	}
	r.setter = nil
	if err := r.console(ctx); err != nil {
		return fmt.Errorf("terminal: %w", err)
	}
	var locks []*blob.FileLock
	for _, m := range r.alive() {
		locks = append(locks, m.rec.Locks...)
	}
	if err := r.objects.Arm(ctx, locks); err != nil {
		return err
	}
	err := r.together(ctx, r.alive(), func(ctx context.Context, m *member) error {
		_, err := m.own.Call(ctx, unix.SYS_CLOSE, uint64(r.channelFD))
		return wrap("close the channel", err)
	})
	if err != nil {
		return err
	}
	if err := r.stopJobs(ctx); err != nil {
		return err
	}
	return r.together(ctx, r.alive(), func(ctx context.Context, m *member) error {
		if m.left {
			return nil
		}
		return finishMember(ctx, m)
	})
}

func finishMember(ctx context.Context, m *member) error {
	for _, w := range m.threads {
		if err := task.Drain(ctx, w.own); err != nil {
			return err
		}
	}
	for _, w := range m.threads {
		if err := task.FinishThread(ctx, w.own, m.rec, w.rec); err != nil {
			return err
		}
	}
	return nil
}

// stopJobs stops again what job control had stopped. A parent that has waited for
// the stop before must not see it again: it waits for it here, and the SIGCHLD is
// among the signals that are dropped later. Init has no parent here; it is
// stopped last, in release.
func (r *restorer) stopJobs(ctx context.Context) error {
	return r.each(ctx, func(ctx context.Context, m *member) error {
		if m.rec.State != blob.Process_STATE_STOPPED || m.rec.Ppid == 0 {
			return nil
		}
		if err := finishMember(ctx, m); err != nil {
			return err
		}
		if err := leaveMember(ctx, m); err != nil {
			return err
		}
		if err := letGo(m); err != nil {
			return err
		}
		if err := awaitStop(m.hostPID, reapBound); err != nil {
			return err
		}
		if m.rec.StopIsNews {
			return nil
		}
		parent := r.members[m.rec.Ppid]
		got, err := parent.own.Call(ctx, unix.SYS_WAIT4, uint64(m.rec.Pid), 0, unix.WUNTRACED|unix.WNOHANG, 0)
		if err == nil && got != uint64(m.rec.Pid) {
			err = fmt.Errorf("its parent, pid %d, was not told", m.rec.Ppid)
		}
		return wrap("wait for the stop in its parent", err)
	})
}

// awaitStop waits until every thread of a process is stopped by job control: it is
// the last that lets the parent know.
func awaitStop(pid int, bound time.Duration) error {
	for end := time.Now().Add(bound); time.Now().Before(end); {
		stopped, err := allStopped(pid)
		if err != nil || stopped {
			return err
		}
		sys.Nap(100 * time.Microsecond)
	}
	return fmt.Errorf("process %d did not stop within %v: %w", pid, bound, errs.ErrTimeout)
}

// allStopped says whether all threads of a process are stopped by job control. A
// thread tells its parent after it is marked as stopped (do_signal_stop in
// kernel/signal.c); the file "syscall" waits until it has left its CPU, or does not
// say where it waits (task_current_syscall in lib/syscall.c).
func allStopped(pid int) (bool, error) {
	tids, err := threadsOf(pid)
	if err != nil {
		return false, err
	}
	for _, tid := range tids {
		st, err := procfs.ReadStat(tid)
		if err != nil || st.State != 'T' {
			return false, err
		}
		if waits, err := procfs.ReadSyscall(pid, tid); err != nil || waits.Running {
			return false, err
		}
	}
	return true, nil
}

// leave takes our memory out of every process and gives every thread its
// registers. Nothing may fail softly after it: the tasks can't be called again.
func (r *restorer) leave(ctx context.Context) error {
	return r.together(ctx, r.alive(), func(ctx context.Context, m *member) error {
		if m.left {
			return nil
		}
		return leaveMember(ctx, m)
	})
}

func leaveMember(ctx context.Context, m *member) error {
	for _, w := range slices.Backward(m.threads) { // the leader last: it takes the memory away
		leave := w.own.Forget
		if w.own == m.own {
			leave = w.own.Drop
		}
		if err := leave(ctx); err != nil {
			return err
		}
	}
	for _, w := range m.threads {
		if err := task.RestoreCPU(w.own.Task(), w.rec); err != nil {
			return &errs.Error{Obj: errs.Name(fmt.Sprintf("thread %d", w.rec.Tid)), Err: err}
		}
	}
	m.left = true
	return nil
}

// release lets all tasks go, init last: until then our death ends them all.
func (r *restorer) release(context.Context) error {
	for _, m := range slices.Backward(r.alive()) {
		if err := letGo(m); err != nil {
			return &errs.Error{Op: "restore", PID: int(m.rec.Pid), Err: err}
		}
	}
	return nil
}

// letGo lets a member run, or stop if it was stopped. It is safe to call again.
func letGo(m *member) error {
	if m.gone {
		return nil
	}
	if m.rec.State == blob.Process_STATE_STOPPED {
		if err := unix.Kill(m.hostPID, unix.Signal(m.rec.StopSignal)); err != nil {
			return fmt.Errorf("stop: %w", err)
		}
	}
	for _, w := range slices.Backward(m.threads) {
		if err := w.own.Task().Detach(0); err != nil {
			return fmt.Errorf("let thread %d go: %w", w.rec.Tid, err)
		}
	}
	m.gone = true
	return nil
}
