package remote

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"

	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/cr/sys"
	"golang.org/x/sys/unix"
)

// An entry of the array that the task runs, 64 bytes, little-endian:
//
//	 0  8  number of the call
//	 8 48  its six arguments
//	56  8  the answer
const (
	entrySize   = 64
	entryResult = 56
)

const pushAlign = 16

// area is scratch memory in a task. Pushed bytes grow from its start; a batch's
// entries lie behind them while it runs.
type area struct {
	pid  int
	base Addr
	size uint64
	used *uint64                                         // shared by the threads of one address space
	run  func(ctx context.Context, at Addr, n int) error // runs n entries
	peek func(calls []Call) error                        // sees a batch first; may be nil
}

// Call makes one call.
func (a *area) Call(ctx context.Context, nr uintptr, args ...uint64) (uint64, error) {
	c := []Call{{NR: nr}}
	copy(c[0].Args[:], args)
	if err := a.Batch(ctx, c); err != nil {
		return 0, err
	}
	return c[0].Result()
}

// Batch makes all calls, in as few resumes as there is room for: usually one.
func (a *area) Batch(ctx context.Context, calls []Call) error {
	at := alignUp(*a.used, entrySize)
	room := 0
	if at < a.size {
		room = int((a.size - at) / entrySize)
	}
	if room == 0 {
		return fmt.Errorf("no room for calls in %d bytes of scratch memory, %d in use: %w",
			a.size, *a.used, syscall.ENOMEM)
	}
	if a.peek != nil {
		if err := a.peek(calls); err != nil {
			return err
		}
	}
	for len(calls) > 0 {
		n := min(room, len(calls))
		if err := a.batch(ctx, a.base+Addr(at), calls[:n]); err != nil {
			return err
		}
		calls = calls[n:]
	}
	return nil
}

func (a *area) batch(ctx context.Context, at Addr, calls []Call) error {
	b := make([]byte, 0, len(calls)*entrySize)
	for _, c := range calls {
		b = binary.LittleEndian.AppendUint64(b, uint64(c.NR))
		for _, arg := range c.Args {
			b = binary.LittleEndian.AppendUint64(b, arg)
		}
		b = binary.LittleEndian.AppendUint64(b, unanswered)
	}
	if err := writeTask(a.pid, at, b); err != nil {
		return err
	}
	if err := a.run(ctx, at, len(calls)); err != nil {
		return err
	}
	if err := readTask(a.pid, at, b); err != nil {
		return err
	}
	for i := range calls {
		calls[i].Ret = binary.LittleEndian.Uint64(b[i*entrySize+entryResult:])
	}
	return nil
}

// unanswered stands in the answer of a call that was not made: -ENOSYS.
const unanswered = ^uint64(syscall.ENOSYS) + 1

// Push copies b into the scratch memory.
func (a *area) Push(b []byte) (Addr, error) {
	at := alignUp(*a.used, pushAlign)
	if at+uint64(len(b)) > a.size {
		return 0, fmt.Errorf("no room for %d bytes in %d of scratch memory, %d in use: %w",
			len(b), a.size, *a.used, syscall.ENOMEM)
	}
	if len(b) > 0 {
		if err := writeTask(a.pid, a.base+Addr(at), b); err != nil {
			return 0, err
		}
	}
	*a.used = at + uint64(len(b))
	return a.base + Addr(at), nil
}

// Read fills b from the task's memory.
func (a *area) Read(at Addr, b []byte) error {
	if len(b) == 0 {
		return nil
	}
	return readTask(a.pid, at, b)
}

// Write copies b to writable memory of the task.
func (a *area) Write(at Addr, b []byte) error {
	if len(b) == 0 {
		return nil
	}
	return writeTask(a.pid, at, b)
}

// Reset forgets what was pushed.
func (a *area) Reset() { *a.used = 0 }

// Scratch is where the scratch memory lies and how long it is, for callers that
// list the task's mappings while it is there.
func (a *area) Scratch() (at Addr, size uint64) { return a.base, a.size }

func alignUp(n, to uint64) uint64 { return (n + to - 1) &^ (to - 1) }

func writeTask(pid int, at Addr, b []byte) error {
	n, err := sys.ProcessWrite(pid, uint64(at), b)
	return moved("write", pid, at, b, n, err)
}

func readTask(pid int, at Addr, b []byte) error {
	n, err := sys.ProcessRead(pid, uint64(at), b)
	return moved("read", pid, at, b, n, err)
}

// moved makes an error of a failed or short transfer.
func moved(op string, pid int, at Addr, b []byte, n int, err error) error {
	switch {
	case err == nil && n == len(b):
		return nil
	case err == nil:
		err = unix.EFAULT
	case errors.Is(err, unix.ESRCH):
		err = fmt.Errorf("%w (%w)", errs.ErrGone, err)
	}
	return fmt.Errorf("%s %d bytes at %x of task %d: %w", op, len(b), uint64(at), pid, err)
}
