package sys

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ProcessRead copies memory of a process, at address at, into b by
// process_vm_readv(2): pid may be that of any of its threads. It returns how
// much could be read.
func ProcessRead(pid int, at uint64, b []byte) (int, error) {
	return processVM(unix.SYS_PROCESS_VM_READV, pid, at, b)
}

// ProcessWrite copies b to address at of a process by process_vm_writev(2).
// The pages must be writable there.
func ProcessWrite(pid int, at uint64, b []byte) (int, error) {
	return processVM(unix.SYS_PROCESS_VM_WRITEV, pid, at, b)
}

func processVM(nr uintptr, pid int, at uint64, b []byte) (int, error) {
	local := unix.Iovec{Base: unsafe.SliceData(b), Len: uint64(len(b))}
	far := unix.RemoteIovec{Base: uintptr(at), Len: len(b)}
	r, _, e := unix.Syscall6(nr, uintptr(pid), uintptr(unsafe.Pointer(&local)), 1,
		uintptr(unsafe.Pointer(&far)), 1, 0)
	runtime.KeepAlive(b)
	if e != 0 {
		return 0, e
	}
	return int(r), nil
}

// ProcessMadvise advises the kernel on [start, end) of the process that pidfd
// names (process_madvise(2), Linux 5.10).
func ProcessMadvise(pidfd int, start, end uint64, advice int) error {
	iov := unix.RemoteIovec{Base: uintptr(start), Len: int(end - start)}
	_, _, e := unix.Syscall6(unix.SYS_PROCESS_MADVISE, uintptr(pidfd), uintptr(unsafe.Pointer(&iov)), 1,
		uintptr(advice), 0, 0)
	if e != 0 {
		return e
	}
	return nil
}

// SchedYield lets another thread of this CPU run.
func SchedYield() {
	unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0) //nolint:errcheck // it can't fail (sched_yield(2))
}
