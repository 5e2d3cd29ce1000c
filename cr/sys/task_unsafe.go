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
