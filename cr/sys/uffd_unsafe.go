package sys

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Features of a userfaultfd (include/uapi/linux/userfaultfd.h).
const (
	UFFDEventFork     = 1 << 1
	UFFDEventRemap    = 1 << 2
	UFFDEventRemove   = 1 << 3
	UFFDEventUnmap    = 1 << 6
	UFFDWPUnpopulated = 1 << 13 // Linux 6.4
	UFFDWPAsync       = 1 << 15 // Linux 6.7
)

// What a range of memory is registered for.
const (
	UFFDMissing = 1 << 0
	UFFDWP      = 1 << 1
)

// UFFDUserModeOnly makes a userfaultfd that needs no privilege: it does not stop
// faults of the kernel (userfaultfd(2), Linux 5.11).
const UFFDUserModeOnly = 1

// What a userfaultfd tells its reader.
const (
	UFFDPageFault = 0x12
	UFFDFork      = 0x13
	UFFDRemap     = 0x14
	UFFDRemove    = 0x15
	UFFDUnmap     = 0x16
)

// IoctlUFFDNew on an open /dev/userfaultfd makes a userfaultfd of the calling
// task's memory without asking for a privilege (Linux 6.1). Its argument is of
// O_CLOEXEC and O_NONBLOCK.
const IoctlUFFDNew = 0xaa00

const (
	ioctlUFFDAPI        = 0xc018aa3f
	ioctlUFFDRegister   = 0xc020aa00
	ioctlUFFDUnregister = 0x8010aa01
	ioctlUFFDWake       = 0x8010aa02
	ioctlUFFDCopy       = 0xc028aa03
	ioctlUFFDZero       = 0xc020aa04

	uffdAPI          = 0xaa
	uffdCopyDontWake = 1 << 0
)

// UFFDHandshake begins to use a userfaultfd and returns which features the
// kernel has. It answers EINVAL if it lacks one that is asked for.
func UFFDHandshake(uffd *os.File, features uint64) (uint64, error) {
	arg := struct{ api, features, ioctls uint64 }{api: uffdAPI, features: features}
	err := uffdIoctl(uffd, ioctlUFFDAPI, unsafe.Pointer(&arg))
	return arg.features, err
}

// UFFDRegister watches [start, end) for mode.
func UFFDRegister(uffd *os.File, start, end, mode uint64) error {
	arg := struct{ start, size, mode, ioctls uint64 }{start: start, size: end - start, mode: mode}
	return uffdIoctl(uffd, ioctlUFFDRegister, unsafe.Pointer(&arg))
}

// UFFDUnregister ends that; who waits for a page of it goes on.
func UFFDUnregister(uffd *os.File, start, end uint64) error {
	arg := struct{ start, size uint64 }{start, end - start}
	return uffdIoctl(uffd, ioctlUFFDUnregister, unsafe.Pointer(&arg))
}

// UFFDWake lets go on who waits for a page of [start, end).
func UFFDWake(uffd *os.File, start, end uint64) error {
	arg := struct{ start, size uint64 }{start, end - start}
	return uffdIoctl(uffd, ioctlUFFDWake, unsafe.Pointer(&arg))
}

// UFFDCopy puts the pages of b at address at, where none may be, and returns how
// many bytes that were: all, or those up to the page that it failed at. EEXIST
// means that there is one, EAGAIN that the mappings are being changed: try
// again, ENOENT that none is registered there, ESRCH that the process ended.
// With wake it lets go on who waits for them.
func UFFDCopy(uffd *os.File, at uint64, b []byte, wake bool) (int, error) {
	arg := struct {
		dst, src, size, mode uint64
		copied               int64
	}{dst: at, src: uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))), size: uint64(len(b))}
	if !wake {
		arg.mode = uffdCopyDontWake
	}
	err := uffdIoctl(uffd, ioctlUFFDCopy, unsafe.Pointer(&arg))
	runtime.KeepAlive(b)
	return int(max(arg.copied, 0)), err
}

// UFFDZero puts pages of zeros into [start, end); see [UFFDCopy].
func UFFDZero(uffd *os.File, start, end uint64, wake bool) (int, error) {
	arg := struct {
		start, size, mode uint64
		done              int64
	}{start: start, size: end - start}
	if !wake {
		arg.mode = uffdCopyDontWake
	}
	err := uffdIoctl(uffd, ioctlUFFDZero, unsafe.Pointer(&arg))
	return int(max(arg.done, 0)), err
}

func uffdIoctl(uffd *os.File, nr uintptr, arg unsafe.Pointer) error {
	conn, err := uffd.SyscallConn()
	if err != nil {
		return err
	}
	var errno unix.Errno
	err = conn.Control(func(fd uintptr) {
		_, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, nr, uintptr(arg))
	})
	if err == nil && errno != 0 {
		err = errno
	}
	return err
}

// UFFDMsgSize is the size of one message of a userfaultfd, in bytes.
const UFFDMsgSize = 32

// UFFDMsg is one message: struct uffd_msg. Which fields hold depends on Event.
type UFFDMsg struct {
	Event   byte
	Write   bool   // page fault: it was a write
	Address uint64 // page fault: where
	FD      int    // fork: the child's userfaultfd, now ours
	Start   uint64 // remap: from; remove and unmap: begin
	End     uint64 // remove and unmap
	To      uint64 // remap
	Size    uint64 // remap, in bytes
}

var errShortMsg = errors.New("short message")

// ParseUFFDMsg decodes the message at the start of b.
func ParseUFFDMsg(b []byte) (m UFFDMsg, err error) {
	if len(b) < UFFDMsgSize {
		return m, errShortMsg
	}
	m.Event = b[0]
	a, c, d := le64(b[8:]), le64(b[16:]), le64(b[24:])
	switch m.Event {
	case UFFDPageFault:
		m.Write, m.Address = a&1 != 0, c
	case UFFDFork:
		m.FD = int(uint32(a))
	case UFFDRemap:
		m.Start, m.To, m.Size = a, c, d
	case UFFDRemove, UFFDUnmap:
		m.Start, m.End = a, c
	default:
		return m, fmt.Errorf("event %#x of a userfaultfd is unknown", m.Event)
	}
	return m, nil
}

func le64(b []byte) uint64 { return binary.LittleEndian.Uint64(b) }
