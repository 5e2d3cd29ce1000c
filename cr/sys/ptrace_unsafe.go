package sys

import (
	"encoding/binary"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Ptrace is ptrace(2) for requests whose last two arguments are numbers. It
// must be called by the thread that attached the task.
func Ptrace(request, tid int, addr, data uintptr) (uintptr, error) {
	call := unix.RawSyscall6
	if request == PtraceSeize {
		// It may wait for a frozen task. The scheduler must know, or the garbage
		// collector waits for us, and with it the timer that thaws the task.
		call = unix.Syscall6
	}
	r, _, e := call(unix.SYS_PTRACE, uintptr(request), uintptr(tid), addr, data, 0, 0)
	if e != 0 {
		return 0, e
	}
	return r, nil
}

// PtraceBytes is ptrace(2) for requests whose data argument points at memory
// of ours: b is read or filled by the kernel. A nil b is a null pointer.
func PtraceBytes(request, tid int, addr uintptr, b []byte) (int, error) {
	r, _, e := unix.RawSyscall6(unix.SYS_PTRACE, uintptr(request), uintptr(tid), addr,
		uintptr(unsafe.Pointer(unsafe.SliceData(b))), 0, 0)
	runtime.KeepAlive(b)
	if e != 0 {
		return 0, e
	}
	return int(r), nil
}

// PtracePeekUserWord reads one word of the task's struct user. The raw call
// stores the word through its data argument (PTRACE_PEEKUSER in ptrace(2), "C
// library/kernel differences").
func PtracePeekUserWord(tid int, offset uintptr) (uint64, error) {
	var b [8]byte
	_, err := PtraceBytes(PtracePeekUser, tid, offset, b[:])
	return binary.NativeEndian.Uint64(b[:]), err
}

// PtraceRegset gets or sets one register set and returns how many bytes the
// kernel moved, which is len(b) when there may be more.
func PtraceRegset(request, tid, note int, b []byte) (int, error) {
	v := unix.Iovec{Base: unsafe.SliceData(b), Len: uint64(len(b))}
	_, _, e := unix.RawSyscall6(unix.SYS_PTRACE, uintptr(request), uintptr(tid), uintptr(note),
		uintptr(unsafe.Pointer(&v)), 0, 0)
	runtime.KeepAlive(b)
	if e != 0 {
		return 0, e
	}
	return int(v.Len), nil
}

// PeekSigInfoArgs is struct ptrace_peeksiginfo_args.
type PeekSigInfoArgs struct {
	Off   uint64 // skip so many signals of the queue
	Flags uint32 // 1: the queue of the whole process
	Count int32  // at most so many
}

// PtracePeekSigInfos copies queued signals, SigInfoSize bytes each, into b and
// returns how many there were.
func PtracePeekSigInfos(tid int, a PeekSigInfoArgs, b []byte) (int, error) {
	r, _, e := unix.RawSyscall6(unix.SYS_PTRACE, PtracePeekSigInfo, uintptr(tid),
		uintptr(unsafe.Pointer(&a)), uintptr(unsafe.Pointer(unsafe.SliceData(b))), 0, 0)
	runtime.KeepAlive(b)
	if e != 0 {
		return 0, e
	}
	return int(r), nil
}
