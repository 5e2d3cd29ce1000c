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
// belongs to the whole process, into p and mm. The thread is left as it was,
// but for a system call that only the stop interrupted, which begins again.
func captureThread(ctx context.Context, s *Stopped, filters *Filters, p *blob.Process, mm *blob.MM, leader bool) (*blob.Thread, error) {
	th := &blob.Thread{Comm: []byte(s.Status.Name), Creds: credsOf(&s.Status), SeccompMode: uint32(s.Status.Seccomp)}
	th.Tid = int32(innermost(s.Status.NSpid))
	if err := captureOutside(s, th, filters); err != nil {
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
		asks = append(asks, processAsks(p, mm)...)
		asks = append(asks, actionAsks(s.Status.SigCgt|s.Status.SigIgn, p)...)
	}
	return th, visit(ctx, s.Task, asks)
}

// visit runs asks inside a task that is left as it was.
func visit(ctx context.Context, t *tracer.Task, asks []ask) (err error) {
	v, err := remote.Visit(ctx, t, remote.VisitOptions{})
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

// CaptureProcess records a stopped process: threads, the leader first. What the
// process's memory and files are is not recorded here.
func CaptureProcess(ctx context.Context, hostPID int, threads []*Stopped, filters *Filters, mm *blob.MM) (*blob.Process, error) {
	p, err := processOf(hostPID)
	if err != nil {
		return nil, err
	}
	for i, s := range threads {
		th, err := captureThread(ctx, s, filters, p, mm, i == 0)
		if err != nil {
			return nil, &errs.Error{Obj: errs.Name(fmt.Sprintf("thread %d", innermost(s.Status.NSpid))), Err: err}
		}
		p.Threads = append(p.Threads, th)
	}
	return p, nil
}

// CaptureZombie records a process that has ended and was not waited for.
func CaptureZombie(hostPID int) (*blob.Process, error) {
	p, err := processOf(hostPID)
	if err != nil {
		return nil, err
	}
	p.State = blob.Process_STATE_ZOMBIE
	return p, nil
}

// processOf reads what /proc says of a process. Its place in the family is in
// the container's numbers but for the parent, which the caller knows.
func processOf(hostPID int) (*blob.Process, error) {
	st, err := procfs.ReadStatus(hostPID)
	if err != nil {
		return nil, err
	}
	stat, err := procfs.ReadStat(hostPID)
	if err != nil {
		return nil, err
	}
	p := &blob.Process{
		Pid: int32(innermost(st.NSpid)), Pgid: int32(innermost(st.NSpgid)), Sid: int32(innermost(st.NSsid)),
		Comm: []byte(st.Name), Creds: credsOf(&st), ExitSignal: uint32(stat.ExitSignal), ExitCode: uint32(stat.ExitCode),
	}
	if st.State == 'Z' {
		return p, nil
	}
	p.Creds, p.ExitCode = nil, 0
	p.Fs = &blob.FS{Umask: st.Umask}
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
