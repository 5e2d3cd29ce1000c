package task

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/blob"
)

// itimerAsks asks for the three interval timers (struct itimerval: interval,
// value; each seconds and microseconds).
func itimerAsks(p *blob.Process) []ask {
	var asks []ask
	for which := range uint32(3) {
		asks = append(asks, ask{
			what: fmt.Sprintf("getitimer %d", which), nr: unix.SYS_GETITIMER,
			args: [6]uint64{uint64(which)}, out: 32, outArg: 1,
			done: func(_ uint64, b []byte) error {
				it := &blob.ITimer{Which: which, IntervalUs: word(b, 0)*1e6 + word(b, 1), ValueUs: word(b, 2)*1e6 + word(b, 3)}
				if it.IntervalUs|it.ValueUs != 0 {
					p.Itimers = append(p.Itimers, it)
				}
				return nil
			},
		})
	}
	return asks
}

// setITimerAsks arms the interval timers. One that has an interval and nothing left
// has run out: the kernel starts it again when the program takes its SIGALRM
// (posixtimer_rearm_itimer in kernel/time/itimer.c), which waits here too. To set a
// value of 0 would disarm it for good.
func setITimerAsks(p *blob.Process) []ask {
	var asks []ask
	for _, it := range p.Itimers {
		value := it.ValueUs
		if value == 0 {
			value = it.IntervalUs
		}
		asks = append(asks, ask{
			what: fmt.Sprintf("setitimer %d", it.Which), nr: unix.SYS_SETITIMER, args: [6]uint64{uint64(it.Which)},
			in: u64s(it.IntervalUs/1e6, it.IntervalUs%1e6, value/1e6, value%1e6), inArg: 1,
		})
	}
	return asks
}

// posixTimerAsks asks for what is left of the timers in p, which
// /proc/PID/timers listed.
func posixTimerAsks(p *blob.Process) []ask {
	var asks []ask
	for _, t := range p.Timers {
		asks = append(asks, ask{
			what: fmt.Sprintf("timer_gettime %d", t.Id), nr: unix.SYS_TIMER_GETTIME,
			args: [6]uint64{uint64(t.Id)}, out: 32, outArg: 1,
			done: func(_ uint64, b []byte) error {
				t.IntervalNs = int64(word(b, 0)*1e9 + word(b, 1))
				t.ValueNs = int64(word(b, 2)*1e9 + word(b, 3))
				return nil
			},
		}, ask{
			what: fmt.Sprintf("timer_getoverrun %d", t.Id), nr: unix.SYS_TIMER_GETOVERRUN, args: [6]uint64{uint64(t.Id)},
			done: func(n uint64, _ []byte) error {
				t.Overrun = int32(n)
				return nil
			},
		})
	}
	return asks
}

const (
	prTimerCreateRestoreIDs = 77 // Linux 6.15: timer_create takes the id from the caller
	sigevThreadID           = 4
	sigevSize               = 64
)

// chooseTimerIDs lets timer_create take the id from the caller, or not any more.
func chooseTimerIDs(on uint64) ask {
	return ask{what: "prctl PR_TIMER_CREATE_RESTORE_IDS", nr: unix.SYS_PRCTL, args: [6]uint64{prTimerCreateRestoreIDs, on}}
}

// createTimerAsks makes the timers of p, disarmed.
func createTimerAsks(p *blob.Process) []ask {
	var asks []ask
	for _, t := range p.Timers {
		asks = append(asks, ask{
			what: fmt.Sprintf("timer_create %d", t.Id), nr: unix.SYS_TIMER_CREATE,
			args: [6]uint64{uint64(int64(t.Clock))}, in: timerRequest(t), inArg: 1,
			alsoArg: 2, alsoAt: sigevSize,
		})
	}
	return asks
}

// timerRequest encodes struct sigevent (value, signal, notify, tid) and behind
// it the id that timer_create reads or writes.
func timerRequest(t *blob.PosixTimer) []byte {
	b := make([]byte, sigevSize+8)
	le.PutUint64(b, t.Value)
	le.PutUint32(b[8:], uint32(t.Signal))
	le.PutUint32(b[12:], uint32(t.Notify))
	if t.Notify&sigevThreadID != 0 {
		le.PutUint32(b[16:], uint32(t.Tid))
	}
	le.PutUint32(b[sigevSize:], uint32(t.Id))
	return b
}

// armTimerAsks arms the timers of p: the last thing before the process goes on.
func armTimerAsks(p *blob.Process) []ask {
	var asks []ask
	for _, t := range p.Timers {
		if t.ValueNs == 0 && t.IntervalNs == 0 {
			continue
		}
		asks = append(asks, ask{
			what: fmt.Sprintf("timer_settime %d", t.Id), nr: unix.SYS_TIMER_SETTIME, args: [6]uint64{uint64(t.Id), 0},
			in: u64s(uint64(t.IntervalNs/1e9), uint64(t.IntervalNs%1e9), uint64(t.ValueNs/1e9), uint64(t.ValueNs%1e9)), inArg: 2,
		})
	}
	return append(asks, setITimerAsks(p)...)
}
