package task

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/cr/procfs"
	"github.com/stasis-cr/stasis/cr/remote"
	"github.com/stasis-cr/stasis/cr/sys"
	"github.com/stasis-cr/stasis/cr/tracer"
)

// Stopped is one thread of the container in a ptrace stop.
type Stopped struct {
	*tracer.Task
	Status procfs.Status
	Calls  Calls // nil: nothing is known of them
}

// captureThread records one stopped thread. With leader set it also asks what
// belongs to the whole process, into p and o.MM.
func captureThread(ctx context.Context, s *Stopped, p *blob.Process, o ThreadOptions, leader bool) (*blob.Thread, error) {
	th := &blob.Thread{Comm: []byte(s.Status.Name), Creds: credsOf(&s.Status), SeccompMode: uint32(s.Status.Seccomp)}
	th.Tid = int32(innermost(s.Status.NSpid))
	if err := captureOutside(s, th, o.Filters); err != nil {
		return nil, err
	}
	if leader {
		var err error
		if p.SharedPending, err = pending(s.Task, true); err != nil {
			return nil, fmt.Errorf("pending signals of the process: %w", err)
		}
	}
	if err := settleThread(s, th, p); err != nil {
		return nil, err
	}
	if err := captureCPU(s.Task, th); err != nil {
		return nil, err
	}
	asks := threadAsks(th)
	if leader {
		asks = append(asks, processAsks(p, o.MM)...)
		asks = append(asks, actionAsks(s.Status.SigCgt|s.Status.SigIgn, p)...)
	}
	if leader && o.LastPID != nil {
		last, err := lastPIDAsks(s.Status.TGID, o.LastPID)
		if err != nil {
			return nil, err
		}
		asks = append(last, asks...) // where there is no room for all in one batch, these are in one
	}
	return th, visit(ctx, s.Task, remote.VisitOptions{VDSO: o.VDSO, Status: &s.Status, Idle: o.Idle}, asks)
}

// visit runs asks inside a task that is left as it was.
func visit(ctx context.Context, t *tracer.Task, o remote.VisitOptions, asks []ask) (err error) {
	v, err := remote.Visit(ctx, t, o)
	if err != nil {
		return err
	}
	err = run(ctx, v, asks)
	if e := v.Close(ctx); err == nil {
		err = e
	}
	return err
}

// captureOutside reads what the kernel tells about a thread from outside.
func captureOutside(s *Stopped, th *blob.Thread, filters *Filters) (err error) {
	if th.Sigmask, err = s.SigMask(); err != nil {
		return fmt.Errorf("signal mask: %w", err)
	}
	if th.Pending, err = pending(s.Task, false); err != nil {
		return fmt.Errorf("pending signals: %w", err)
	}
	rs, err := s.RSeq()
	if err != nil {
		return fmt.Errorf("rseq: %w", err)
	}
	if rs.Pointer != 0 {
		th.Rseq = &blob.RSeq{Address: rs.Pointer, Size: rs.Size, Signature: rs.Signature, Flags: rs.Flags}
	}
	if th.RobustList, th.RobustListLen, err = sys.GetRobustList(s.TID); err != nil {
		return err
	}
	if th.Sched, err = schedOf(s.TID); err != nil {
		return err
	}
	if s.Status.Seccomp == SeccompFilter {
		th.SeccompFilters, err = filters.Of(s.Task)
	}
	return err
}

// settleThread puts the thread's registers into a state that it can be let go
// from here or elsewhere, and notes what a restore must rebuild.
func settleThread(s *Stopped, th *blob.Thread, p *blob.Process) error {
	regs, err := s.Regs()
	if err != nil {
		return fmt.Errorf("registers: %w", err)
	}
	mem := func(at uint64, b []byte) error { return readMemory(s.TID, at, b) }
	waiting := uint64(0)
	for _, i := range slices.Concat(th.Pending, p.SharedPending) {
		if n := sigNumber(i); n >= 1 && n <= sigMax {
			waiting |= 1 << (n - 1)
		}
	}
	changed, err := settle(&regs, waiting&^th.Sigmask&s.Status.SigCgt != 0, th.Rseq, mem)
	if err != nil {
		return err
	}
	if changed {
		if err := s.SetRegs(&regs); err != nil {
			return fmt.Errorf("registers: %w", err)
		}
	}
	th.Restart = restartOf(&regs, s.Calls.original(s.TID, &regs), mem)
	return nil
}

// innermost is a task's number in the innermost pid namespace that it is in.
func innermost(nspid []int) int {
	if len(nspid) == 0 {
		return 0
	}
	return nspid[len(nspid)-1]
}

// ThreadOptions are what CaptureThread is told beside the thread.
type ThreadOptions struct {
	Filters *Filters     // takes the seccomp filters
	MM      *blob.MM     // takes what only the process can tell of its memory
	LastPID *int32       // takes the number that its pid namespace gave out last; nil: not asked for
	VDSO    remote.Range // where the process has its vdso; zero: look
	Idle    remote.Idle  // of [remote.Together]; may be nil
}

// CaptureThread records thread i of p, which Describe has made; p.Threads has room
// for it. The leader is the first, and its capture is begun before those of others:
// it tells of the process, too. The thread is left as it was, but for a system call
// that only the stop interrupted, which begins again.
func CaptureThread(ctx context.Context, p *blob.Process, i int, s *Stopped, o ThreadOptions) (err error) {
	if p.Threads[i], err = captureThread(ctx, s, p, o, i == 0); err != nil {
		return &errs.Error{Obj: errs.Name(fmt.Sprintf("thread %d", innermost(s.Status.NSpid))), Err: err}
	}
	return nil
}

// Describe records what /proc says of a process, which may be one that has ended
// and was not waited for. Its place in the family is in the container's numbers
// but for the parent, which the caller knows. What the process's memory and files
// are is not recorded here.
func Describe(hostPID int, st *procfs.Status, stat *procfs.Stat) (*blob.Process, error) {
	p := &blob.Process{
		Pid: int32(innermost(st.NSpid)), Pgid: int32(innermost(st.NSpgid)), Sid: int32(innermost(st.NSsid)),
		Comm: []byte(st.Name), ExitSignal: uint32(stat.ExitSignal),
	}
	if st.State == 'Z' {
		p.State, p.Creds, p.ExitCode = blob.Process_STATE_ZOMBIE, credsOf(st), uint32(stat.ExitCode)
		return p, nil
	}
	p.Fs = &blob.FS{Umask: st.Umask}
	var err error
	if p.Args, err = argsOf(hostPID); err != nil {
		return nil, err
	}
	if p.Rlimits, err = limitsOf(hostPID); err != nil {
		return nil, err
	}
	score, err := readInt(fmt.Sprintf("/proc/%d/oom_score_adj", hostPID))
	if err != nil {
		return nil, err
	}
	p.OomScoreAdj = int32(score)
	timers, err := procfs.ReadTimers(hostPID)
	if err != nil {
		return nil, err
	}
	for _, t := range timers {
		p.Timers = append(p.Timers, &blob.PosixTimer{
			Id: int32(t.ID), Clock: int32(t.Clock), Notify: int32(t.Notify), Signal: int32(t.Signal), Value: t.Value, Tid: int32(t.TID),
		})
	}
	return p, nil
}

// argsOf reads a process's command line. It is memory of the process's own and
// may say anything; the image keeps it for people only.
func argsOf(pid int) ([]string, error) {
	args, err := procfs.ReadCmdline(pid)
	for i := range args {
		args[i] = strings.ToValidUTF8(args[i], "?")
	}
	return args, err
}

func readMemory(tid int, at uint64, b []byte) error {
	n, err := sys.ProcessRead(tid, at, b)
	if err == nil && n < len(b) {
		err = unix.EFAULT
	}
	if err != nil {
		return fmt.Errorf("memory at %x: %w", at, err)
	}
	return nil
}
