package procfs

import (
	"bytes"
	"fmt"
	"io"
	"strconv"
)

// How a POSIX timer tells that it expired (asm-generic/siginfo.h).
const (
	SigevSignal   = 0
	SigevNone     = 1
	SigevThread   = 2
	SigevThreadID = 4 // a bit: to one thread, not to the process
)

// Timer is one POSIX timer of a process.
type Timer struct {
	ID     int
	Signal int
	Value  uint64 // sigev_value
	Notify int    // SIGEV_*
	TID    int    // who gets the signal, in the reader's pid namespace: a thread with SigevThreadID, else a process
	Clock  int    // clockid_t; negative: a process's or thread's CPU clock
}

// ParseTimers parses /proc/PID/timers (fs/proc/base.c, show_timer; since 3.10).
func ParseTimers(r io.Reader) ([]Timer, error) {
	var out []Timer
	var t Timer
	line := 0 // of the four that a timer has
	err := eachLine(r, func(b []byte) bool {
		var ok bool
		switch line {
		case 0:
			t = Timer{}
			ok = value(b, "ID:", &t.ID)
		case 1:
			ok = t.setSignal(b)
		case 2:
			ok = t.setNotify(b)
		case 3:
			ok = value(b, "ClockID:", &t.Clock)
			out = append(out, t)
		}
		line = (line + 1) % 4
		return ok
	})
	if err != nil {
		return nil, err
	}
	if line != 0 {
		return nil, fmt.Errorf("timer %d is cut short: %w", t.ID, ErrFormat)
	}
	return out, nil
}

// value takes the decimal number behind key.
func value[T whole](b []byte, key string, to *T) bool {
	b, ok := bytes.CutPrefix(b, []byte(key))
	return ok && dec(b, to)
}

// setSignal takes "signal: 10/0000000000000abc": the number and sigev_value.
func (t *Timer) setSignal(b []byte) bool {
	b, ok := bytes.CutPrefix(b, []byte("signal:"))
	sig, val, cut := bytes.Cut(b, []byte("/"))
	if string(val) == "(null)" { // a null pointer in some old kernels
		val = []byte("0")
	}
	return ok && cut && dec(sig, &t.Signal) && hex(val, &t.Value)
}

// setNotify takes "notify: signal/pid.2634" or "signal/tid.2635".
func (t *Timer) setNotify(b []byte) bool {
	b, ok := bytes.CutPrefix(b, []byte("notify: "))
	how, who, cut := bytes.Cut(b, []byte("/"))
	kind, id, dot := bytes.Cut(who, []byte("."))
	if !ok || !cut || !dot {
		return false
	}
	switch string(how) {
	case "signal":
		t.Notify = SigevSignal
	case "none":
		t.Notify = SigevNone
	case "thread":
		t.Notify = SigevThread
	default:
		return false
	}
	if string(kind) == "tid" {
		t.Notify |= SigevThreadID
	} else if string(kind) != "pid" {
		return false
	}
	return dec(id, &t.TID)
}

// Timers reads the POSIX timers of a process, in no particular order.
func (root FS) Timers(pid int) ([]Timer, error) {
	return read(root, ParseTimers, strconv.Itoa(pid), "timers")
}

// ReadTimers reads /proc/PID/timers. It is there only in kernels built with
// CONFIG_CHECKPOINT_RESTORE (without it: fs.ErrNotExist).
func ReadTimers(pid int) ([]Timer, error) { return Proc.Timers(pid) }
