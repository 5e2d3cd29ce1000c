package sys

import (
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ForkHolder makes a child that shares our table of descriptors (CLONE_FILES) and
// does nothing: whatever is in the table, now or later, outlives us. It ends when
// pidfd, of another process, becomes readable, or when it is killed.
//
// The child makes raw calls only: of the runtime it has one thread and no more.
// Nobody sends it the signals that the runtime has handlers for.
func ForkHolder(pidfd int) (pid int, err error) {
	p := unix.PollFd{Fd: int32(pidfd), Events: unix.POLLIN}
	r, _, e := syscall.RawSyscall6(unix.SYS_CLONE, unix.CLONE_FILES|uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if e != 0 {
		return 0, fmt.Errorf("clone: %w", e)
	}
	if r != 0 {
		return int(r), nil
	}
	for {
		n, _, _ := syscall.RawSyscall(unix.SYS_POLL, uintptr(unsafe.Pointer(&p)), 1, ^uintptr(0))
		if n == 1 {
			_, _, _ = syscall.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
		}
	}
}
