package remote

import (
	"context"
	"syscall"
)

// Addr is an address in the task: a type of its own, never taken for one of ours.
type Addr uint64

// FD is a descriptor in the task.
type FD int32

// Call is one system call of a batch.
type Call struct {
	NR   uintptr
	Args [6]uint64
	Ret  uint64 // what the kernel answered, raw; see Result
}

// Result is the answer of the kernel; a negative one is a syscall.Errno.
func (c *Call) Result() (uint64, error) { return result(c.Ret) }

// maxErrno is MAX_ERRNO (include/linux/err.h): answers above -4096 are errors.
const maxErrno = 4095

func result(ret uint64) (uint64, error) {
	if e := -int64(ret); e > 0 && e <= maxErrno {
		return 0, syscall.Errno(e)
	}
	return ret, nil
}

// A Caller makes system calls in one stopped task, which is stopped again when
// a method returns. Calls that block, and clone, execve, exit and rt_sigreturn,
// are not for it.
type Caller interface {
	// Call makes one call. A negative answer comes back as a syscall.Errno;
	// other errors mean that the call may not have been made.
	Call(ctx context.Context, nr uintptr, args ...uint64) (uint64, error)
	// Batch makes all calls in order, whatever they answer, and fills in Ret.
	// Its error says only that the batch could not run.
	Batch(ctx context.Context, calls []Call) error
	// Push lends memory of the task that holds b, 16-byte aligned, until Reset.
	Push(b []byte) (Addr, error)
	// Read fills b from any readable memory of the task.
	Read(at Addr, b []byte) error
	// Write copies b to writable memory of the task.
	Write(at Addr, b []byte) error
	// Reset forgets what was pushed.
	Reset()
}
