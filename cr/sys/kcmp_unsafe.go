package sys

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

const kcmpEpollTFD = 7

// KcmpEpollTFD says whether the target that the epoll descriptor epfd of task
// pid2 watches under the number tfd is the description that task pid1 has as
// descriptor fd: 0 if it is. toff picks one of several targets with that number
// (kcmp(2), KCMP_EPOLL_TFD). It fails with ENOENT if there is no such target.
func KcmpEpollTFD(pid1, fd, pid2, epfd, tfd int, toff uint32) (int, error) {
	slot := struct{ efd, tfd, toff uint32 }{uint32(epfd), uint32(tfd), toff}
	r, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(pid1), uintptr(pid2), kcmpEpollTFD,
		uintptr(fd), uintptr(unsafe.Pointer(&slot)), 0)
	if errno != 0 {
		return 0, errno
	}
	return int(r), nil
}
