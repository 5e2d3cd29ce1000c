package task

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/tracer"
)

const (
	sigsetSize   = 8
	sigActSize   = 32 // struct sigaction of the x86-64 kernel: handler, flags, restorer, mask
	sigChld      = 17
	sigMax       = 64
	sigInfoSize  = 128
	allSignals   = ^uint64(0)
	sigsUncaught = 1<<(9-1) | 1<<(19-1) // SIGKILL and SIGSTOP have no action
)

// actionAsks asks for the actions of the signals in changed, a mask of those
// that the status file lists as caught or ignored. SIGCHLD is asked always: its
// SA_NOCLDWAIT and SA_NOCLDSTOP count even with the default action.
func actionAsks(changed uint64, p *blob.Process) []ask {
	changed = (changed | 1<<(sigChld-1)) &^ sigsUncaught
	var asks []ask
	for sig := uint32(1); sig <= sigMax; sig++ {
		if changed&(1<<(sig-1)) == 0 {
			continue
		}
		asks = append(asks, ask{
			what: fmt.Sprintf("rt_sigaction %d", sig), nr: unix.SYS_RT_SIGACTION,
			args: [6]uint64{uint64(sig), 0, 0, sigsetSize}, out: sigActSize, outArg: 2,
			done: func(_ uint64, b []byte) error {
				a := &blob.SigAction{Signal: sig, Handler: word(b, 0), Flags: word(b, 1), Restorer: word(b, 2), Mask: word(b, 3)}
				if a.Handler|a.Flags|a.Mask != 0 {
					p.Actions = append(p.Actions, a)
				}
				return nil
			},
		})
	}
	return asks
}

// setActionAsks sets the actions of p. A fresh program has the default for every
// signal but those that its runtime left ignored, a mask: these become the
// default where p does not say otherwise.
func setActionAsks(p *blob.Process, ignored uint64) []ask {
	var asks []ask
	set := func(sig uint32, a *blob.SigAction) {
		asks = append(asks, ask{
			what: fmt.Sprintf("rt_sigaction %d", sig), nr: unix.SYS_RT_SIGACTION,
			args: [6]uint64{uint64(sig), 0, 0, sigsetSize},
			in:   u64s(a.GetHandler(), a.GetFlags(), a.GetRestorer(), a.GetMask()), inArg: 1,
		})
	}
	for _, a := range p.Actions {
		set(a.Signal, a)
		ignored &^= 1 << (a.Signal - 1)
	}
	for sig := uint32(1); sig <= sigMax; sig++ {
		if ignored&(1<<(sig-1)) != 0 {
			set(sig, nil)
		}
	}
	return asks
}

// pending reads the signals that wait for t, or for its whole process.
func pending(t *tracer.Task, shared bool) ([]*blob.SigInfo, error) {
	infos, err := t.PeekSigInfo(shared)
	if err != nil {
		return nil, err
	}
	out := make([]*blob.SigInfo, 0, len(infos))
	for _, b := range infos {
		out = append(out, &blob.SigInfo{Info: b})
	}
	return out, nil
}

// queueAsks queues the signals that waited for a thread and, in its leader, for
// the process. A task may forge any siginfo to itself (rt_sigqueueinfo(2)).
func queueAsks(p *blob.Process, t *blob.Thread, leader bool) []ask {
	var asks []ask
	for _, s := range t.Pending {
		asks = append(asks, ask{
			what: "rt_tgsigqueueinfo", nr: unix.SYS_RT_TGSIGQUEUEINFO,
			args: [6]uint64{uint64(p.Pid), uint64(t.Tid), uint64(sigNumber(s))}, in: s.Info, inArg: 3,
		})
	}
	if !leader {
		return asks
	}
	for _, s := range p.SharedPending {
		asks = append(asks, ask{
			what: "rt_sigqueueinfo", nr: unix.SYS_RT_SIGQUEUEINFO,
			args: [6]uint64{uint64(p.Pid), uint64(sigNumber(s))}, in: s.Info, inArg: 2,
		})
	}
	return asks
}

func sigNumber(s *blob.SigInfo) uint32 { return le.Uint32(s.Info) }

// drainAsk takes one pending signal, if there is one: building the tree leaves
// SIGCHLDs that the program never had.
func drainAsk(took *bool) ask {
	return ask{
		what: "rt_sigtimedwait", nr: unix.SYS_RT_SIGTIMEDWAIT,
		args: [6]uint64{0, 0, 0, sigsetSize}, in: u64s(allSignals, 0, 0), inArg: 0, alsoArg: 2, alsoAt: 8,
		may: []unix.Errno{unix.EAGAIN},
		done: func(uint64, []byte) error {
			*took = true
			return nil
		},
	}
}

// altStackAsk asks for the alternate signal stack (stack_t: sp, flags, size).
func altStackAsk(t *blob.Thread) ask {
	return ask{
		what: "sigaltstack", nr: unix.SYS_SIGALTSTACK, out: 24, outArg: 1,
		done: func(_ uint64, b []byte) error {
			t.Altstack = &blob.SigAltStack{Sp: word(b, 0), Flags: le.Uint32(b[8:]), Size: word(b, 2)}
			return nil
		},
	}
}

const (
	ssOnStack = 1 // SS_ONSTACK: a fact about the stack pointer, not a setting
	ssDisable = 2
)

func setAltStackAsks(t *blob.Thread) []ask {
	s := t.Altstack
	if s == nil || s.Flags&ssDisable != 0 {
		return nil
	}
	return []ask{{
		what: "sigaltstack", nr: unix.SYS_SIGALTSTACK,
		in: u64s(s.Sp, uint64(s.Flags&^ssOnStack), s.Size), inArg: 0,
	}}
}
