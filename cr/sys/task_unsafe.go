package sys

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// GetRobustList returns the head of a thread's robust futex list and the size of
// that head, 0 if it has none: get_robust_list(2).
func GetRobustList(tid int) (head, size uint64, err error) {
	_, _, errno := unix.Syscall(unix.SYS_GET_ROBUST_LIST, uintptr(tid),
		uintptr(unsafe.Pointer(&head)), uintptr(unsafe.Pointer(&size)))
	if errno != 0 {
		return 0, 0, fmt.Errorf("get_robust_list: %w", errno)
	}
	return head, size, nil
}

// NoStopSignals keeps the kernel from sending this process a SIGCHLD whenever a
// task that it traces stops (SA_NOCLDSTOP, sigaction(2)); those of children that end
// still come. It is meant for who waits by wait4(2): the signal interrupts whatever
// thread it meets, which takes longer than the stop. Who asks the runtime for
// SIGCHLD afterwards gets all of them again.
func NoStopSignals() error {
	const noChildStop = 1                                   // SA_NOCLDSTOP
	var act struct{ handler, flags, restorer, mask uint64 } // of the kernel, on x86-64
	_, _, e := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(unix.SIGCHLD), 0, uintptr(unsafe.Pointer(&act)), 8, 0, 0)
	if e == 0 {
		act.flags |= noChildStop
		_, _, e = unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(unix.SIGCHLD), uintptr(unsafe.Pointer(&act)), 0, 8, 0, 0)
	}
	if e != 0 {
		return fmt.Errorf("rt_sigaction: %w", e)
	}
	return nil
}
