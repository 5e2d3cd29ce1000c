package mem

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// source reads bytes: a task's memory by address, or a file by offset.
type source interface {
	read(b []byte, spans []span) error
}

// taskMemory reads the memory of a task from outside.
//
// process_vm_readv is the fast way, but it pins pages, and to pin one that is
// shared copy-on-write the kernel copies it first (mm/gup.c, gup_must_unshare,
// Linux 5.19): the container would grow, and its sharing be lost before it is
// seen. gentle reads by /proc/PID/mem only, which does not pin.
type taskMemory struct {
	pid    int
	gentle bool

	mem sync.Once
	f   *os.File
	err error
}

// maxIov is UIO_MAXIOV.
const maxIov = 1024

func (t *taskMemory) read(b []byte, spans []span) error {
	for len(spans) > 0 {
		n := min(len(spans), maxIov)
		remote := make([]unix.RemoteIovec, n)
		size := 0
		for i, r := range spans[:n] {
			remote[i] = unix.RemoteIovec{Base: uintptr(r.start), Len: int(r.end - r.start)}
			size += remote[i].Len
		}
		got, err := 0, error(nil)
		if !t.gentle {
			local := []unix.Iovec{{Base: &b[0], Len: uint64(size)}}
			got, err = unix.ProcessVMReadv(t.pid, local, remote, 0)
		}
		if err != nil || got != size {
			if err := t.readEach(b[:size], spans[:n]); err != nil {
				return err
			}
		}
		b, spans = b[size:], spans[n:]
	}
	return nil
}

// close gives up the memory file, if it was needed.
func (t *taskMemory) close() error {
	if t.f == nil {
		return nil
	}
	return t.f.Close()
}

// readEach reads through /proc/PID/mem, which unlike process_vm_readv also
// reads what the task itself may not (PROT_NONE).
func (t *taskMemory) readEach(b []byte, spans []span) error {
	t.mem.Do(func() { t.f, t.err = os.Open(fmt.Sprintf("/proc/%d/mem", t.pid)) })
	if t.err != nil {
		return t.err
	}
	for _, r := range spans {
		n := int(r.end - r.start)
		if _, err := t.f.ReadAt(b[:n], int64(r.start)); err != nil {
			return fmt.Errorf("memory %x-%x: %w", r.start, r.end, err)
		}
		b = b[n:]
	}
	return nil
}

// fileBytes reads a file; what lies beyond its end reads as zeros.
type fileBytes struct{ f *os.File }

func (s fileBytes) read(b []byte, spans []span) error {
	for _, r := range spans {
		n := int(r.end - r.start)
		got, err := s.f.ReadAt(b[:n], int64(r.start))
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("%s at %d: %w", s.f.Name(), r.start, err)
		}
		clear(b[got:n])
		b = b[n:]
	}
	return nil
}
