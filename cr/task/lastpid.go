package task

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/remote"
)

// lastPIDKnob is a file that shows each reader its own pid namespace
// (kernel/pid_namespace.c), so a task of the container must read it.
const lastPIDKnob = "/proc/sys/kernel/ns_last_pid\x00"

// LastPID reads the number that the container's pid namespace gave out last,
// through a stopped task; 0 if the container has no /proc to read it from.
func LastPID(ctx context.Context, s *Stopped) (last int32, err error) {
	v, err := remote.Visit(ctx, s.Task, remote.VisitOptions{})
	if err != nil {
		return 0, err
	}
	defer func() {
		if e := v.Close(ctx); err == nil {
			err = e
		}
	}()
	path, err := v.Push([]byte(lastPIDKnob))
	if err != nil {
		return 0, err
	}
	text, err := v.Push(make([]byte, 32))
	if err != nil {
		return 0, err
	}
	fd, err := freeFD(s.Status.TGID)
	if err != nil {
		return 0, err
	}
	// One batch, so that the task closes the file even if we die: all its
	// threads are stopped, so the number that open will give is known.
	at := unix.AT_FDCWD
	calls := []remote.Call{
		{NR: unix.SYS_OPENAT, Args: [6]uint64{uint64(at), uint64(path), unix.O_RDONLY | unix.O_CLOEXEC}},
		{NR: unix.SYS_READ, Args: [6]uint64{fd, uint64(text), 31}},
		{NR: unix.SYS_CLOSE, Args: [6]uint64{fd}},
	}
	if err := v.Batch(ctx, calls); err != nil {
		return 0, err
	}
	if got, err := calls[0].Result(); err != nil || got != fd {
		return 0, nil // no /proc in there: the pids in use must do
	}
	b := make([]byte, 32)
	if err := v.Read(text, b); err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(string(bytes.TrimSpace(bytes.TrimRight(b, "\x00"))), 10, 32)
	if err != nil {
		return 0, fmt.Errorf("ns_last_pid: %w", err)
	}
	return int32(n), nil
}

// freeFD is the lowest descriptor number that a process does not use.
func freeFD(pid int) (uint64, error) {
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return 0, err
	}
	used := map[string]bool{}
	for _, e := range entries {
		used[e.Name()] = true
	}
	n := 0
	for used[strconv.Itoa(n)] {
		n++
	}
	return uint64(n), nil
}
