package sys

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ioctl numbers that x/sys/unix lacks.
const (
	tfdIocSetTicks = 0x40085400 // include/uapi/linux/timerfd.h
	siocUnixFile   = 0x89e0     // include/uapi/linux/un.h: SIOCPROTOPRIVATE
	siocGSKNS      = 0x894c     // include/uapi/linux/sockios.h
)

// FOwner says who gets the signals of an open file description: F_SETOWN_EX in
// fcntl(2).
type FOwner struct {
	Type int32 // F_OWNER_TID, F_OWNER_PID or F_OWNER_PGRP
	PID  int32 // in the caller's pid namespace
}

// GetOwner answers F_GETOWN_EX.
func GetOwner(fd int) (FOwner, error) {
	var o FOwner
	err := fcntlPtr(fd, unix.F_GETOWN_EX, unsafe.Pointer(&o))
	return o, err
}

// SetOwner does F_SETOWN_EX. The kernel remembers the caller's user ids with it
// (fs/fcntl.c, __f_setown).
func SetOwner(fd int, o FOwner) error {
	return fcntlPtr(fd, unix.F_SETOWN_EX, unsafe.Pointer(&o))
}

func fcntlPtr(fd, cmd int, p unsafe.Pointer) error {
	_, _, errno := unix.Syscall(unix.SYS_FCNTL, uintptr(fd), uintptr(cmd), uintptr(p))
	if errno != 0 {
		return errno
	}
	return nil
}

// TimerFDSetTicks sets the number of expirations that a read of a timerfd
// returns; not 0. ENOTTY on kernels without CONFIG_CHECKPOINT_RESTORE.
func TimerFDSetTicks(fd int, ticks uint64) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), tfdIocSetTicks, uintptr(unsafe.Pointer(&ticks)))
	if errno != 0 {
		return errno
	}
	return nil
}

// UnixSocketFile opens with O_PATH the file that a unix socket is bound to; the
// caller closes it. ENOENT if the socket has no file.
func UnixSocketFile(fd int) (int, error) { return ioctlNewFD(fd, siocUnixFile) }

// SocketNetNS opens the network namespace that a socket belongs to; the caller
// closes it.
func SocketNetNS(fd int) (int, error) { return ioctlNewFD(fd, siocGSKNS) }

func ioctlNewFD(fd int, req uintptr) (int, error) {
	r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, 0)
	if errno != 0 {
		return -1, errno
	}
	return int(r), nil
}

// Getsockopt reads one socket option as the kernel's own bytes; at most 256.
func Getsockopt(fd, level, name int) ([]byte, error) {
	b := make([]byte, 256)
	n := uint32(len(b))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name),
		uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&n)), 0)
	runtime.KeepAlive(b)
	if errno != 0 {
		return nil, errno
	}
	return b[:n], nil
}
