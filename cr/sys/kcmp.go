package sys

import "golang.org/x/sys/unix"

// What kcmp(2) compares; include/uapi/linux/kcmp.h.
const (
	KcmpFile  = 0 // two descriptors: one open file description?
	KcmpVM    = 1 // two tasks: one address space?
	KcmpFiles = 2 // two tasks: one descriptor table?
)

// Kcmp compares a kernel object of two tasks, given by their pids here. The
// answer is 0 for the same object, 1 and 2 for less and greater in an order
// that stays for as long as both objects live (kcmp(2)), so that a sorted list
// of n objects is built with n log n calls. It needs the right to ptrace both.
func Kcmp(pid1, pid2, kind int, idx1, idx2 uint64) (int, error) {
	r, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(pid1), uintptr(pid2), uintptr(kind),
		uintptr(idx1), uintptr(idx2), 0)
	if errno != 0 {
		return 0, errno
	}
	return int(r), nil
}
