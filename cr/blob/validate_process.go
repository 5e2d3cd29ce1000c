package blob

import (
	"fmt"

	"github.com/stasis-cr/stasis/cr/errs"
)

const (
	maxRLimits    = 16
	maxPending    = 1 << 20
	maxExitStatus = 0xffff
	sigKill       = 9
	sigStop       = 19
	sigevNone     = 1
	sigevThreadID = 4
)

// processes checks the tree first and then each process.
func (v *validator) processes() error {
	if err := v.tree(); err != nil {
		return err
	}
	v.tids = map[int32]bool{}
	v.usedMM, v.usedTable = map[uint32]int32{}, map[uint32]int32{}
	v.sessionOfPGID = map[int32]int32{}
	for _, p := range v.img.Processes {
		if err := v.process(p); err != nil {
			return in(err, "process %d", p.Pid)
		}
	}
	return nil
}

// tree checks that the processes are one tree below the one init.
func (v *validator) tree() error {
	v.processByPID = make(map[int32]*Process, len(v.img.Processes))
	for _, p := range v.img.Processes {
		if p.Pid < 1 || p.Pid > maxPID || v.processByPID[p.Pid] != nil {
			return bad("process %d: pid is out of range or not unique", p.Pid)
		}
		if (p.Pid == 1) != (p.Ppid == 0) {
			return bad("process %d: parent %d", p.Pid, p.Ppid)
		}
		v.processByPID[p.Pid] = p
	}
	if v.processByPID[1] == nil {
		return bad("no process 1")
	}
	return v.ancestors()
}

// ancestors follows every process up to init. Those that are known to get there
// are not followed again.
func (v *validator) ancestors() error {
	rooted := map[int32]bool{1: true}
	for _, p := range v.img.Processes {
		var way []int32
		for q := p; !rooted[q.Pid]; {
			if len(way) > len(v.img.Processes) {
				return bad("process %d: is its own ancestor", p.Pid)
			}
			way = append(way, q.Pid)
			parent := v.processByPID[q.Ppid]
			if parent == nil || parent.State == Process_STATE_ZOMBIE {
				return bad("process %d: no living parent %d", q.Pid, q.Ppid)
			}
			q = parent
		}
		for _, pid := range way {
			rooted[pid] = true
		}
	}
	return nil
}

func (v *validator) process(p *Process) error {
	if err := v.family(p); err != nil {
		return err
	}
	switch p.State {
	case Process_STATE_ZOMBIE:
		return v.zombie(p)
	case Process_STATE_RUNNING, Process_STATE_STOPPED:
		return v.living(p)
	}
	return fmt.Errorf("unknown state %d: %w", p.State, errs.ErrVersion)
}

// family checks what a process shares with others, and what all kinds have.
func (v *validator) family(p *Process) error {
	switch {
	case p.Pgid < 0 || p.Pgid > maxPID || p.Sid < 0 || p.Sid > maxPID:
		return bad("group %d, session %d", p.Pgid, p.Sid)
	case p.Sid == p.Pid && p.Pgid != p.Pid:
		return bad("leads session %d but not its group, %d", p.Sid, p.Pgid)
	case p.ExitSignal > maxSignal || p.StopSignal > maxSignal:
		return bad("exit signal %d, stopped by %d", p.ExitSignal, p.StopSignal)
	}
	if sid, ok := v.sessionOfPGID[p.Pgid]; ok && sid != p.Sid && p.Pgid != 0 {
		return bad("group %d is in sessions %d and %d", p.Pgid, sid, p.Sid)
	}
	v.sessionOfPGID[p.Pgid] = p.Sid
	return comm(p.Comm)
}

// zombie checks that nothing but a name and an end is left.
func (v *validator) zombie(p *Process) error {
	rest := len(p.Threads) + len(p.Actions) + len(p.SharedPending) +
		len(p.Itimers) + len(p.Timers) + len(p.Rlimits) + len(p.Locks)
	switch {
	case p.Pid == 1:
		return bad("init is a zombie")
	case p.Mm != 0 || p.FdTable != 0 || p.Fs != nil || rest != 0:
		return bad("a zombie with more than its end")
	case p.ExitCode > maxExitStatus:
		return bad("exit status %#x", p.ExitCode)
	}
	return in(v.newTID(p.Pid), "zombie")
}

func (v *validator) living(p *Process) error {
	switch {
	case v.mmsByID[p.Mm] == nil:
		return bad("no mm %d", p.Mm)
	case v.tablesByID[p.FdTable] == nil:
		return bad("no descriptor table %d", p.FdTable)
	case v.usedMM[p.Mm] != 0 || v.usedTable[p.FdTable] != 0:
		return bad("mm %d or descriptor table %d is another's", p.Mm, p.FdTable)
	case p.Fs == nil || v.filesByID[p.Fs.Cwd] == nil:
		return bad("no file %d for its directory", p.Fs.GetCwd())
	case p.Fs.Root != 0 && v.filesByID[p.Fs.Root] == nil:
		return bad("no file %d for its root", p.Fs.Root)
	case p.Fs.Umask > 0o777:
		return bad("umask %#o", p.Fs.Umask)
	case p.ExitCode != 0:
		return bad("exit status %#x of a living process", p.ExitCode)
	case p.OomScoreAdj < -1000 || p.OomScoreAdj > 1000:
		return bad("oom_score_adj %d", p.OomScoreAdj)
	case p.Dumpable > 2:
		return bad("dumpable %d", p.Dumpable)
	}
	v.usedMM[p.Mm], v.usedTable[p.FdTable] = p.Pid, p.Pid
	for _, check := range []func(*Process) error{v.threads, signals, timers, rlimits, v.locks} {
		if err := check(p); err != nil {
			return err
		}
	}
	return nil
}

func signals(p *Process) error {
	var seen uint64
	for _, a := range p.Actions {
		if a.Signal < 1 || a.Signal > maxSignal || a.Signal == sigKill || a.Signal == sigStop ||
			seen&(1<<(a.Signal-1)) != 0 {
			return bad("action of signal %d", a.Signal)
		}
		seen |= 1 << (a.Signal - 1)
	}
	return pending(p.SharedPending)
}

// pending checks queued signals: the number is siginfo_t's first word.
func pending(list []*SigInfo) error {
	if len(list) > maxPending {
		return bad("%d pending signals", len(list))
	}
	for _, s := range list {
		if len(s.Info) != sigInfoSize {
			return bad("pending signal of %d bytes", len(s.Info))
		}
		n := uint32(s.Info[0]) | uint32(s.Info[1])<<8 | uint32(s.Info[2])<<16 | uint32(s.Info[3])<<24
		if n < 1 || n > maxSignal {
			return bad("pending signal %d", n)
		}
	}
	return nil
}

// timers checks both kinds of timers.
func timers(p *Process) error {
	seen := map[uint32]bool{}
	for _, t := range p.Itimers {
		if t.Which > 2 || seen[t.Which] || t.IntervalUs > maxOffset || t.ValueUs > maxOffset {
			return bad("interval timer %d: %d us left, interval %d us", t.Which, t.ValueUs, t.IntervalUs)
		}
		seen[t.Which] = true
	}
	threads := map[int32]bool{}
	for _, t := range p.Threads {
		threads[t.Tid] = true
	}
	ids := map[int32]bool{}
	for _, t := range p.Timers {
		switch {
		case t.Id < 0 || ids[t.Id]:
			return bad("timer %d: id is negative or not unique", t.Id)
		case t.Notify < 0 || t.Notify > sigevThreadID || t.Notify == 3:
			return bad("timer %d: notify %d", t.Id, t.Notify)
		case t.Notify != sigevNone && (t.Signal < 1 || t.Signal > maxSignal):
			return bad("timer %d: signal %d", t.Id, t.Signal)
		case t.Notify == sigevThreadID && !threads[t.Tid]:
			return bad("timer %d: no thread %d", t.Id, t.Tid)
		case t.ValueNs < 0 || t.IntervalNs < 0 || t.Overrun < 0:
			return bad("timer %d: %d ns left, interval %d ns, overrun %d", t.Id, t.ValueNs, t.IntervalNs, t.Overrun)
		}
		ids[t.Id] = true
	}
	return nil
}

func rlimits(p *Process) error {
	var seen [maxRLimits]bool
	for _, l := range p.Rlimits {
		if l.Resource >= maxRLimits || seen[l.Resource] || l.Soft > l.Hard {
			return bad("limit %d: %d of %d", l.Resource, l.Soft, l.Hard)
		}
		seen[l.Resource] = true
	}
	return nil
}

// locks checks that each lock is on a file that the process holds.
func (v *validator) locks(p *Process) error {
	if len(p.Locks) == 0 {
		return nil
	}
	held := map[int32]uint32{}
	for _, fd := range v.tablesByID[p.FdTable].Fds {
		held[fd.Fd] = fd.File
	}
	for _, l := range p.Locks {
		switch {
		case l.Kind > FileLock_OFD || l.Kind < 0:
			return fmt.Errorf("lock on fd %d: unknown kind %d: %w", l.Fd, l.Kind, errs.ErrVersion)
		case l.File == 0 || held[l.Fd] != l.File:
			return bad("lock on fd %d: it is not file %d", l.Fd, l.File)
		case l.Start > maxOffset || l.End > maxOffset || l.End != 0 && l.End <= l.Start:
			return bad("lock on fd %d: bytes %d to %d", l.Fd, l.Start, l.End)
		}
	}
	return nil
}
