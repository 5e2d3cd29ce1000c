package sys

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// keep leaves an id as it is: setresuid(2).
const keep = ^uintptr(0)

// AsUser runs f with other effective ids, for what the kernel remembers of the
// caller: the SO_PEERCRED of unix(7). Capabilities are not effective meanwhile.
// If the ids can't be put back, the error says so and the thread must end.
//
// Precondition: the goroutine is locked to its thread; the ids are the thread's
// own, unlike those that the syscall package sets.
func AsUser(uid, gid uint32, f func() error) (err error) {
	if uid == uint32(unix.Geteuid()) && gid == uint32(unix.Getegid()) {
		return f()
	}
	was, wasGroup := uintptr(unix.Geteuid()), uintptr(unix.Getegid())
	if err := effective(unix.SYS_SETRESGID, uintptr(gid)); err != nil {
		return fmt.Errorf("group %d: %w", gid, err)
	}
	defer func() { err = errors.Join(err, effective(unix.SYS_SETRESGID, wasGroup)) }()
	if err := effective(unix.SYS_SETRESUID, uintptr(uid)); err != nil {
		return fmt.Errorf("user %d: %w", uid, err)
	}
	defer func() { err = errors.Join(err, effective(unix.SYS_SETRESUID, was)) }()
	return f()
}

func effective(nr, id uintptr) error {
	if _, _, errno := unix.RawSyscall(nr, keep, id, keep); errno != 0 {
		return errno
	}
	return nil
}
