package cr

import (
	"context"
	"log/slog"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/procfs"
	"github.com/stasis-cr/stasis/cr/sys"
	"github.com/stasis-cr/stasis/cr/tracer"
)

// Threads that end or get another number while we hold others of their process: the
// kernel tells nobody else before we have taken the news.

// reapMeanwhile takes the news of dead threads of a process while one of its threads
// is seized. If that one executes a program, the kernel lets us wait until it has
// (ptrace_attach in kernel/ptrace.c), and it waits until we have taken the news of
// the others (de_thread in fs/exec.c). Any thread of ours may do that.
func reapMeanwhile(pid int) (stop func()) {
	done := make(chan struct{})
	late := time.AfterFunc(stopNap, func() {
		for !closed(done) {
			reapThreads(pid)
			sys.Nap(stopNap)
		}
	})
	return func() {
		late.Stop()
		close(done)
	}
}

// reapThreads takes the news of dead threads of a process, but for its leader, as far
// as they are traced by us.
func reapThreads(pid int) {
	tids, err := threadsOf(pid)
	if err != nil {
		return
	}
	for _, tid := range tids {
		if tid != pid && hasEnded(tid) {
			_ = unix.Waitid(unix.P_PID, tid, nil, unix.WEXITED|unix.WNOHANG|unix.WALL, nil) //nolint:errcheck // another was quicker
		}
	}
}

// hasEnded says whether there is news that a thread which we trace has ended. It only
// looks: a stop of a traced thread is told to whoever waits, whatever for
// (wait_task_stopped in kernel/exit.c), and only once.
func hasEnded(tid int) bool {
	var si unix.Siginfo
	err := unix.Waitid(unix.P_PID, tid, &si, unix.WEXITED|unix.WNOHANG|unix.WALL|unix.WNOWAIT, nil)
	return err == nil && (si.Code == cldExited || si.Code == cldKilled || si.Code == cldDumped)
}

// How a task ended, in si_code (sigaction(2)).
const (
	cldExited = 1 + iota
	cldKilled
	cldDumped
)

// passExecs takes the news of threads that were killed while they were stopped, for a
// thread that executes a program waits until we have (de_thread in fs/exec.c).
func (f *frozen) passExecs(ctx context.Context, waiting []*thread) error {
	for _, w := range waiting {
		for _, t := range f.attached {
			if !t.stopped || t.gone || t.pid != w.pid {
				continue
			}
			if err := f.stop(ctx, t, 0); err != nil {
				return err
			}
		}
	}
	return nil
}

// bury takes the news of those that were killed while they were stopped: their
// parents are told only then (wait_task_zombie in kernel/exit.c), and a thread that
// executes a program waits for it. That of a leader comes after those of all its
// threads. One that never came to rest may do so now.
func (f *frozen) bury(ctx context.Context, lost []*thread) {
	end := time.Now().Add(releaseWait)
	for _, t := range lost {
		if stop, err := t.Wait(ctx, time.Until(end)); err == nil && stop.Kind != tracer.Gone {
			err = t.Detach(int(stop.Signal))
			f.log.Debug("let go late", slog.Int("tid", t.TID), slog.Any("err", err))
		}
	}
}

// executed is for a thread that is gone because one of its process has executed a
// program: that one has the number of the leader from then on (execve(2) under
// ptrace). It is followed there if it was attached, and else seized when the tree is
// walked again.
func (f *frozen) executed(t *thread) {
	st, err := procfs.ReadStatus(t.pid)
	switch leader := f.attached[t.pid]; {
	case err != nil || st.State == 'Z' || leader != nil && !leader.gone:
	case isOurs(st.TracerPID):
		f.attached[t.pid] = &thread{Task: tracer.Attached(t.pid, t.Task), pid: t.pid}
	default:
		delete(f.attached, t.pid)
		f.lost = true
	}
}

// isOurs says whether a tracer, of which the kernel tells the thread, is one of us.
func isOurs(tracer int) bool {
	_, err := os.Stat("/proc/self/task/" + strconv.Itoa(tracer))
	return tracer != 0 && err == nil
}
