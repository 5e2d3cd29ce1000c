package task

import (
	"bytes"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// lastPIDKnob is a file that shows each reader its own pid namespace
// (kernel/pid_namespace.c), so a task of the container must read it.
const lastPIDKnob = "/proc/sys/kernel/ns_last_pid\x00"

const lastPIDSize = 32

// lastPIDAsks asks a process whose threads are all stopped for the number that its
// pid namespace gave out last; 0 if it has no /proc to read it from: the pids in
// use must do then. The number that open will give is known, as nobody else opens
// anything. All is in one batch, so the process closes the file even if we die.
func lastPIDAsks(pid int, last *int32) ([]ask, error) {
	fd, err := freeFD(pid)
	if err != nil {
		return nil, err
	}
	at, opened := unix.AT_FDCWD, false
	return []ask{
		{
			what: "open ns_last_pid", nr: unix.SYS_OPENAT, args: [6]uint64{uint64(at), 0, unix.O_RDONLY | unix.O_CLOEXEC},
			in: []byte(lastPIDKnob), inArg: 1, mayFail: true,
			done: func(got uint64, _ []byte) error {
				opened = got == fd
				return nil
			},
		},
		{
			what: "read ns_last_pid", nr: unix.SYS_READ, args: [6]uint64{fd, 0, lastPIDSize}, out: lastPIDSize, outArg: 1, mayFail: true,
			done: func(n uint64, b []byte) error {
				if !opened || n > uint64(len(b)) {
					return nil
				}
				v, err := strconv.ParseInt(string(bytes.TrimSpace(b[:n])), 10, 32)
				*last = int32(v)
				return err
			},
		},
		{what: "close ns_last_pid", nr: unix.SYS_CLOSE, args: [6]uint64{fd}, mayFail: true},
	}, nil
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
