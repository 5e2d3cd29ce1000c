package sys

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

const (
	ioprioWhoProcess = 1
	// ioprio classes sit above 13 bits of data (include/uapi/linux/ioprio.h).
	ioprioClassShift = 13
)

// IOPrioGet returns the I/O priority of a thread: ioprio_get(2).
func IOPrioGet(tid int) (uint32, error) {
	v, _, errno := unix.Syscall(unix.SYS_IOPRIO_GET, ioprioWhoProcess, uintptr(tid), 0)
	if errno != 0 {
		return 0, fmt.Errorf("ioprio_get: %w", errno)
	}
	if v>>ioprioClassShift == 0 {
		return 0, nil // no class: derived from nice, nothing was set
	}
	return uint32(v), nil
}

// IOPrioSet sets the I/O priority of a thread: ioprio_set(2).
func IOPrioSet(tid int, prio uint32) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOPRIO_SET, ioprioWhoProcess, uintptr(tid), uintptr(prio)); errno != 0 {
		return fmt.Errorf("ioprio_set: %w", errno)
	}
	return nil
}

// Nap sleeps for d, or less if a signal comes. time.Sleep goes through Go's scheduler,
// whose timers may be a millisecond late.
func Nap(d time.Duration) {
	ts := unix.NsecToTimespec(int64(d))
	_ = unix.Nanosleep(&ts, nil) //nolint:errcheck // see above
}
