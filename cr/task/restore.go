package task

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/procfs"
	"github.com/stasis-cr/stasis/cr/remote"
	"github.com/stasis-cr/stasis/cr/tracer"
)

// Born is what a new task was given by its parent: what the image holds is
// reached from here.
type Born struct {
	Creds   *blob.Creds
	Filters []uint32 // of seccomp, oldest first
	Ignored uint64   // signals that the runtime left ignored
}

// BornAs reads what the blank, a task that has run none of its program, was
// given by the OCI runtime.
func BornAs(ctx context.Context, t *tracer.Task, c remote.Caller, filters *Filters) (*Born, error) {
	st, err := procfs.ReadStatus(t.TID)
	if err != nil {
		return nil, err
	}
	b := &Born{Creds: credsOf(&st), Ignored: st.SigIgn}
	if st.Seccomp == SeccompFilter {
		if b.Filters, err = filters.Of(t); err != nil {
			return nil, err
		}
	}
	return b, run(ctx, c, []ask{secureBitsAsk(b.Creds)})
}

// RestoreProcess gives the leader of a process what belongs to all its threads.
// Credentials are not part of it. From outside: limits and the OOM score.
func RestoreProcess(ctx context.Context, hostPID int, c remote.Caller, born *Born, p *blob.Process) error {
	if err := run(ctx, c, append(setProcessAsks(p), setActionAsks(p, born.Ignored)...)); err != nil {
		return err
	}
	if err := createTimers(ctx, c, p); err != nil {
		return err
	}
	if err := setOOMScore(hostPID, p.OomScoreAdj); err != nil {
		return err
	}
	return setLimits(ctx, hostPID, c, p.Rlimits)
}

// RestoreZombie gives a process that is about to end the credentials and the
// name that its parent will see, and no more.
func RestoreZombie(ctx context.Context, c remote.Caller, born *Born, p *blob.Process) error {
	asks := setCredsAsks(born.Creds, p.Creds)
	return run(ctx, c, append(asks, ask{
		what: "prctl PR_SET_NAME", nr: unix.SYS_PRCTL, args: [6]uint64{unix.PR_SET_NAME}, in: append(slices.Clone(p.Comm), 0), inArg: 1,
	}))
}

// RestoreThread gives one thread all that is its own but for the processor's
// state. Privileges go last, for what comes before may need them. insn is the
// address of a `syscall` instruction in the task.
func RestoreThread(ctx context.Context, t *tracer.Task, c remote.Caller, born *Born, filters *Filters,
	p *blob.Process, th *blob.Thread, insn remote.Addr,
) error {
	have, err := schedOf(t.TID)
	if err != nil {
		return err
	}
	if err := setSched(t.TID, have, th.Sched); err != nil {
		return err
	}
	if err := run(ctx, c, setThreadAsks(th)); err != nil {
		return err
	}
	asks := setCredsAsks(born.Creds, th.Creds)
	if th.Creds.NoNewPrivs && !born.Creds.NoNewPrivs {
		asks = append(asks, ask{what: "prctl PR_SET_NO_NEW_PRIVS", nr: unix.SYS_PRCTL, args: [6]uint64{unix.PR_SET_NO_NEW_PRIVS, 1}})
	}
	asks = append(asks, pdeathsigAsk(th))
	seccomp, err := filters.setSeccompAsks(born.Filters, th)
	if err != nil {
		return err
	}
	if err := run(ctx, c, append(asks, seccomp...)); err != nil {
		return err
	}
	return rebuildRestart(ctx, t, c, th, insn)
}

// Drain drops the signals that building the tree has sent to a thread or its
// process. All threads of a process are drained before signals are queued.
func Drain(ctx context.Context, c remote.Caller) error {
	for took := true; took; {
		took = false
		if err := run(ctx, c, []ask{drainAsk(&took)}); err != nil {
			return err
		}
	}
	return nil
}

// FinishThread queues the signals that waited for the thread and in the leader
// arms the timers. All threads have their credentials by then: each change of
// them resets what the leader says of dumpability here.
func FinishThread(ctx context.Context, c remote.Caller, p *blob.Process, th *blob.Thread) error {
	leader := th.Tid == p.Pid
	asks := queueAsks(p, th, leader)
	if leader {
		asks = append(append(asks, dumpableAsk(p)...), armTimerAsks(p)...)
	}
	return run(ctx, c, asks)
}

// RestoreCPU gives a stopped thread its mask and its processor state. After it
// no remote call may be made in the thread.
func RestoreCPU(t *tracer.Task, th *blob.Thread) error {
	if err := restoreCPU(t, th); err != nil {
		return err
	}
	if err := t.SetSigMask(th.Sigmask); err != nil {
		return fmt.Errorf("signal mask: %w", err)
	}
	return nil
}

// createTimers makes the timers of p under their old ids, disarmed.
func createTimers(ctx context.Context, c remote.Caller, p *blob.Process) error {
	if len(p.Timers) == 0 {
		return nil
	}
	err := run(ctx, c, []ask{chooseTimerIDs(1)})
	if errors.Is(err, unix.EINVAL) { // before Linux 6.15
		return createTimersByTrial(ctx, c, p)
	}
	if err != nil {
		return err
	}
	return run(ctx, c, append(createTimerAsks(p), chooseTimerIDs(0)))
}

// createTimersByTrial makes the timers of p on kernels that choose the ids:
// they are given out in order, so those in between are made and deleted.
func createTimersByTrial(ctx context.Context, c remote.Caller, p *blob.Process) error {
	const most = 1 << 16 // ids that are tried before giving up
	for _, t := range p.Timers {
		for tries := 0; ; tries++ {
			id, err := createTimer(ctx, c, t)
			if err != nil {
				return err
			}
			if id == t.Id {
				break
			}
			drop := ask{what: fmt.Sprintf("timer_delete %d", id), nr: unix.SYS_TIMER_DELETE, args: [6]uint64{uint64(id)}}
			if err := run(ctx, c, []ask{drop}); err != nil {
				return err
			}
			if tries == most {
				return fmt.Errorf("timer_create: the kernel gave id %d, want %d", id, t.Id)
			}
		}
	}
	return nil
}

func createTimer(ctx context.Context, c remote.Caller, t *blob.PosixTimer) (id int32, err error) {
	defer c.Reset()
	in := timerRequest(t)
	at, err := c.Push(in)
	if err != nil {
		return 0, err
	}
	_, err = c.Call(ctx, unix.SYS_TIMER_CREATE, uint64(int64(t.Clock)), uint64(at), uint64(at)+sigevSize)
	if err != nil {
		return 0, fmt.Errorf("timer_create: %w", err)
	}
	if err := c.Read(at, in); err != nil {
		return 0, err
	}
	return int32(le.Uint32(in[sigevSize:])), nil
}
