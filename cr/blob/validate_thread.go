package blob

const (
	minXState   = 576 // the legacy area and the header of XSAVE
	maxXState   = 16384
	maxGroups   = 65536 // NGROUPS_MAX
	maxAffinity = 1024  // 8192 CPUs
)

// threads checks the threads of a living process, the leader first.
func (v *validator) threads(p *Process) error {
	if len(p.Threads) == 0 || p.Threads[0].Tid != p.Pid {
		return bad("its first thread is not %d", p.Pid)
	}
	for i, t := range p.Threads {
		if i > 0 && v.processByPID[t.Tid] != nil {
			return bad("thread %d is a process, too", t.Tid)
		}
		if err := v.thread(t); err != nil {
			return in(err, "thread %d", t.Tid)
		}
	}
	return nil
}

func (v *validator) newTID(tid int32) error {
	if tid < 1 || tid > maxPID || v.tids[tid] {
		return bad("tid %d is out of range or not unique", tid)
	}
	v.tids[tid] = true
	return nil
}

func (v *validator) thread(t *Thread) error {
	if err := v.newTID(t.Tid); err != nil {
		return err
	}
	switch {
	case len(t.Gpr) != gprSize:
		return bad("general registers of %d bytes", len(t.Gpr))
	case len(t.Xstate) < minXState || len(t.Xstate) > maxXState || len(t.Xstate)%8 != 0:
		return bad("extended registers of %d bytes", len(t.Xstate))
	case len(t.Debug) != 0 && len(t.Debug) != 8:
		return bad("%d debug registers", len(t.Debug))
	case t.Pdeathsig > maxSignal:
		return bad("death signal %d", t.Pdeathsig)
	case t.GetRseq().GetAddress() > taskSize || t.RobustList > taskSize || t.ClearTid > taskSize:
		return bad("rseq %x, robust list %x, tid address %x", t.GetRseq().GetAddress(), t.RobustList, t.ClearTid)
	case len(t.GetRestart().GetArgs()) > 6 || t.GetRestart().GetLeftNs() < -1:
		return bad("restart with %d arguments, %d ns left", len(t.Restart.Args), t.Restart.LeftNs)
	}
	if err := comm(t.Comm); err != nil {
		return err
	}
	if err := pending(t.Pending); err != nil {
		return err
	}
	if err := creds(t.Creds); err != nil {
		return err
	}
	if err := sched(t.Sched); err != nil {
		return err
	}
	return v.filters(t)
}

func creds(c *Creds) error {
	switch {
	case c == nil:
		return bad("no credentials")
	case len(c.Groups) > maxGroups:
		return bad("%d groups", len(c.Groups))
	case c.CapEffective&^c.CapPermitted != 0:
		return bad("effective capabilities %x beyond the permitted %x", c.CapEffective, c.CapPermitted)
	}
	return nil
}

func sched(s *Sched) error {
	if s == nil {
		return nil
	}
	switch {
	case s.Nice < -20 || s.Nice > 19 || s.Priority > 99:
		return bad("nice %d, priority %d", s.Nice, s.Priority)
	case len(s.Affinity) > maxAffinity:
		return bad("CPU mask of %d bytes", len(s.Affinity))
	case s.IoPrio > 0xffff:
		return bad("I/O priority %#x", s.IoPrio)
	}
	return nil
}

// filters checks the seccomp mode: 0 off, 1 strict, 2 with filters.
func (v *validator) filters(t *Thread) error {
	if t.SeccompMode > 2 || (t.SeccompMode == 2) != (len(t.SeccompFilters) > 0) {
		return bad("seccomp mode %d with %d filters", t.SeccompMode, len(t.SeccompFilters))
	}
	have := len(v.img.Seccomp.GetFilters())
	for _, i := range t.SeccompFilters {
		if uint64(i) >= uint64(have) {
			return bad("no seccomp filter %d", i)
		}
	}
	return nil
}
