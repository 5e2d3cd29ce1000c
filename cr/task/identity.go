package task

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/blob"
)

const prGetTIDAddress = 40 // PR_GET_TID_ADDRESS, CONFIG_CHECKPOINT_RESTORE

// threadAsks asks for what only the thread itself can tell.
func threadAsks(t *blob.Thread) []ask {
	return []ask{
		altStackAsk(t),
		{
			what: "prctl PR_GET_TID_ADDRESS", nr: unix.SYS_PRCTL, args: [6]uint64{prGetTIDAddress}, out: 8, outArg: 1,
			done: func(_ uint64, b []byte) error {
				t.ClearTid = word(b, 0)
				return nil
			},
		},
		{
			what: "prctl PR_GET_PDEATHSIG", nr: unix.SYS_PRCTL, args: [6]uint64{unix.PR_GET_PDEATHSIG}, out: 8, outArg: 1,
			done: func(_ uint64, b []byte) error {
				t.Pdeathsig = le.Uint32(b)
				return nil
			},
		},
		{
			what: "prctl PR_GET_TIMERSLACK", nr: unix.SYS_PRCTL, args: [6]uint64{unix.PR_GET_TIMERSLACK},
			done: func(v uint64, _ []byte) error {
				t.TimerSlackNs = v
				return nil
			},
		},
		{
			what: "prctl PR_MCE_KILL_GET", nr: unix.SYS_PRCTL, args: [6]uint64{unix.PR_MCE_KILL_GET},
			done: func(v uint64, _ []byte) error {
				t.MceKill = uint32(v)
				return nil
			},
		},
		secureBitsAsk(t.Creds),
	}
}

// setThreadAsks gives a thread what threadAsks read, but for its signal stack
// and its credentials, which have a time of their own.
func setThreadAsks(t *blob.Thread) []ask {
	anyAnswer := func(uint64, []byte) error { return nil }
	asks := []ask{
		{
			what: "prctl PR_SET_NAME", nr: unix.SYS_PRCTL, args: [6]uint64{unix.PR_SET_NAME},
			in: append(slices.Clone(t.Comm), 0), inArg: 1,
		},
		{what: "set_tid_address", nr: unix.SYS_SET_TID_ADDRESS, args: [6]uint64{t.ClearTid}, done: anyAnswer},
		{
			what: "prctl PR_MCE_KILL", nr: unix.SYS_PRCTL,
			args: [6]uint64{unix.PR_MCE_KILL, unix.PR_MCE_KILL_SET, uint64(t.MceKill)},
		},
		{what: "prctl PR_SET_TIMERSLACK", nr: unix.SYS_PRCTL, args: [6]uint64{unix.PR_SET_TIMERSLACK, t.TimerSlackNs}},
	}
	if t.RobustList != 0 {
		asks = append(asks, ask{what: "set_robust_list", nr: unix.SYS_SET_ROBUST_LIST, args: [6]uint64{t.RobustList, t.RobustListLen}})
	}
	if r := t.Rseq; r.GetAddress() != 0 {
		asks = append(asks, ask{
			what: "rseq", nr: unix.SYS_RSEQ, args: [6]uint64{r.Address, uint64(r.Size), 0, uint64(r.Signature)},
		})
	}
	return append(asks, setAltStackAsks(t)...)
}

// pdeathsigAsk comes after the credentials: changing them clears it.
func pdeathsigAsk(t *blob.Thread) ask {
	return ask{what: "prctl PR_SET_PDEATHSIG", nr: unix.SYS_PRCTL, args: [6]uint64{unix.PR_SET_PDEATHSIG, uint64(t.Pdeathsig)}}
}

const personalityQuery = 0xffffffff

// processAsks asks the leader for what belongs to the whole process.
func processAsks(p *blob.Process, mm *blob.MM) []ask {
	asks := []ask{
		{
			what: "prctl PR_GET_DUMPABLE", nr: unix.SYS_PRCTL, args: [6]uint64{unix.PR_GET_DUMPABLE},
			done: func(v uint64, _ []byte) error {
				p.Dumpable = uint32(v)
				return nil
			},
		},
		{
			what: "prctl PR_GET_CHILD_SUBREAPER", nr: unix.SYS_PRCTL, args: [6]uint64{unix.PR_GET_CHILD_SUBREAPER}, out: 8, outArg: 1,
			done: func(_ uint64, b []byte) error {
				p.ChildSubreaper = le.Uint32(b) != 0
				return nil
			},
		},
		{
			what: "prctl PR_GET_THP_DISABLE", nr: unix.SYS_PRCTL, args: [6]uint64{unix.PR_GET_THP_DISABLE},
			done: func(v uint64, _ []byte) error {
				p.NoThp = v != 0
				return nil
			},
		},
		{
			what: "personality", nr: unix.SYS_PERSONALITY, args: [6]uint64{personalityQuery},
			done: func(v uint64, _ []byte) error {
				p.Personality = v
				return nil
			},
		},
		{
			what: "brk", nr: unix.SYS_BRK,
			done: func(v uint64, _ []byte) error {
				mm.Brk = v
				return nil
			},
		},
	}
	asks = append(asks, itimerAsks(p)...)
	return append(asks, posixTimerAsks(p)...)
}

// setProcessAsks gives a process what processAsks read, but for the timers.
func setProcessAsks(p *blob.Process) []ask {
	flag := func(what string, option int, on bool) ask {
		v := uint64(0)
		if on {
			v = 1
		}
		return ask{what: what, nr: unix.SYS_PRCTL, args: [6]uint64{uint64(option), v}}
	}
	asks := []ask{
		{
			what: fmt.Sprintf("personality %#x", p.Personality), nr: unix.SYS_PERSONALITY, args: [6]uint64{p.Personality},
			done: func(uint64, []byte) error { return nil },
		},
		{what: "umask", nr: unix.SYS_UMASK, args: [6]uint64{uint64(p.Fs.GetUmask())}, done: func(uint64, []byte) error { return nil }},
	}
	if p.NoThp {
		asks = append(asks, flag("prctl PR_SET_THP_DISABLE", unix.PR_SET_THP_DISABLE, true))
	}
	return append(asks, flag("prctl PR_SET_CHILD_SUBREAPER", unix.PR_SET_CHILD_SUBREAPER, p.ChildSubreaper))
}

// dumpableAsk comes after the credentials: changing them resets it. The value 2
// can't be set by anyone; it is what a change of credentials leaves behind.
func dumpableAsk(p *blob.Process) []ask {
	if p.Dumpable > 1 {
		return nil
	}
	return []ask{{what: "prctl PR_SET_DUMPABLE", nr: unix.SYS_PRCTL, args: [6]uint64{unix.PR_SET_DUMPABLE, uint64(p.Dumpable)}}}
}
