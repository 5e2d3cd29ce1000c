package object

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/cr/remote"

	"golang.org/x/sys/unix"
)

// Process is a restored process whose table is installed.
type Process struct {
	PID    int // in the container
	Caller remote.Caller
	Table  *blob.FDTable
	Locks  []*blob.FileLock
}

// number finds under which number the process holds a file; -1 if it doesn't.
func (p Process) number(file uint32) int32 {
	for _, fd := range p.Table.GetFds() {
		if fd.File == file {
			return fd.Fd
		}
	}
	return -1
}

// Link makes by calls in the process what is bound to it: entries of epolls, which
// remember a descriptor number, and POSIX locks, which belong to the process.
// All tables that share descriptions with this one must be installed.
func (r *Restorer) Link(ctx context.Context, p Process) error {
	for _, rec := range r.order {
		if rec.kind.Link == nil || rec.open == nil {
			continue
		}
		if err := rec.kind.Link(ctx, r, rec, p); err != nil {
			return rec.wrap(fmt.Errorf("pid %d: %w", p.PID, err))
		}
	}
	for _, l := range p.Locks {
		if l.Kind != blob.FileLock_POSIX {
			continue // Arm
		}
		if err := posixLock(ctx, p.Caller, l); err != nil {
			return &errs.Error{Op: "restore", PID: p.PID, Obj: errs.FD(l.Fd), Err: err}
		}
	}
	return nil
}

// posixLock takes a lock in the process that owns it. struct flock is 32 bytes
// on x86-64: type, whence, padding, start, length, pid, padding.
func posixLock(ctx context.Context, c remote.Caller, l *blob.FileLock) error {
	t, err := flock(l)
	if err != nil {
		return err
	}
	b := binary.LittleEndian.AppendUint16(nil, uint16(t.Type))
	b = binary.LittleEndian.AppendUint16(b, uint16(t.Whence))
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = binary.LittleEndian.AppendUint64(b, uint64(t.Start))
	b = binary.LittleEndian.AppendUint64(b, uint64(t.Len))
	at, err := c.Push(append(b, make([]byte, 8)...))
	if err != nil {
		return err
	}
	defer c.Reset()
	if _, err := c.Call(ctx, unix.SYS_FCNTL, uint64(l.Fd), unix.F_SETLK, uint64(at)); err != nil {
		return fmt.Errorf("F_SETLK: %w", err)
	}
	return nil
}
