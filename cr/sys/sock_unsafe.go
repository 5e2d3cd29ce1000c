package sys

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxUnixName is the room of sun_path in struct sockaddr_un.
const maxUnixName = 108

// sockaddrUnix is a name as the kernel takes it: abstract names, which begin with
// a NUL, may hold NULs and fill all of the room; paths end with one if it fits.
func sockaddrUnix(name []byte) (unix.RawSockaddrUnix, uintptr, error) {
	sa := unix.RawSockaddrUnix{Family: unix.AF_UNIX}
	if len(name) == 0 || len(name) > maxUnixName {
		return sa, 0, unix.EINVAL
	}
	p := unsafe.Slice((*byte)(unsafe.Pointer(&sa.Path[0])), len(sa.Path))
	n := copy(p, name)
	if name[0] != 0 && n < maxUnixName {
		n++
	}
	return sa, unsafe.Offsetof(sa.Path) + uintptr(n), nil
}

// BindUnix binds a unix socket to a name as sun_path holds it.
func BindUnix(fd int, name []byte) error { return withUnixName(unix.SYS_BIND, fd, name) }

// ConnectUnix connects a unix socket to the one with that name.
func ConnectUnix(fd int, name []byte) error { return withUnixName(unix.SYS_CONNECT, fd, name) }

func withUnixName(nr uintptr, fd int, name []byte) error {
	sa, n, err := sockaddrUnix(name)
	if err != nil {
		return err
	}
	_, _, errno := unix.Syscall(nr, uintptr(fd), uintptr(unsafe.Pointer(&sa)), n)
	if errno != 0 {
		return errno
	}
	return nil
}

// SendUnix sends one message to the unix socket with that name. It does not wait.
func SendUnix(fd int, b, name []byte) error {
	sa, n, err := sockaddrUnix(name)
	if err != nil {
		return err
	}
	_, _, errno := unix.Syscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))),
		uintptr(len(b)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, uintptr(unsafe.Pointer(&sa)), n)
	if errno != 0 {
		return errno
	}
	return nil
}

// RecvUnix receives as recvmsg(2) does, with the sender's name as sun_path holds
// it: nil if it has none.
func RecvUnix(fd int, b, oob []byte, flags int) (n, oobn, rflags int, from []byte, err error) {
	var sa unix.RawSockaddrUnix
	iov := unix.Iovec{Base: unsafe.SliceData(b)}
	iov.SetLen(len(b))
	msg := unix.Msghdr{
		Name: (*byte)(unsafe.Pointer(&sa)), Namelen: uint32(unsafe.Sizeof(sa)),
		Iov: &iov, Iovlen: 1, Control: unsafe.SliceData(oob),
	}
	msg.SetControllen(len(oob))
	r, _, errno := unix.Syscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(&msg)), uintptr(flags))
	if errno != 0 {
		return 0, 0, 0, nil, errno
	}
	if size := int(msg.Namelen) - int(unsafe.Offsetof(sa.Path)); size > 0 {
		from = append(from, unsafe.Slice((*byte)(unsafe.Pointer(&sa.Path[0])), min(size, len(sa.Path)))...)
	}
	return int(r), int(msg.Controllen), int(msg.Flags), from, nil
}
