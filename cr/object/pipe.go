package object

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/stasis-cr/stasis/cr/blob"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// A pipe is one inode with descriptions on both ends, any number of each. Size and
// data belong to the inode.
func pipeKind() Kind {
	return Kind{
		Tag: "pipe", Rev: 1,
		New:     func() proto.Message { return &blob.Pipe{} },
		Match:   func(_ *Capture, d *Desc) bool { return strings.HasPrefix(d.Link, "pipe:[") },
		Capture: capturePipe,
		Finish:  finishPipes,
		Open:    openPipe,
	}
}

// capturePipe leaves the data for later: only when all ends are known is there one
// to read by.
func capturePipe(_ context.Context, _ *Capture, d *Desc) (proto.Message, error) {
	fd, err := d.get()
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	size, err := unix.FcntlInt(uintptr(fd), unix.F_GETPIPE_SZ, 0)
	if err != nil {
		return nil, fmt.Errorf("F_GETPIPE_SZ: %w", err)
	}
	return &blob.Pipe{Inode: uint32(d.stat.Ino), Size: uint32(size)}, nil
}

// ends are the descriptions of one pipe.
type ends struct {
	all          []*object
	read, write  *object // one of each, or nil
	packetWriter bool
}

// finishPipes looks at each pipe as a whole: both ends must be ours, and what is
// in the pipe goes with its first description.
func finishPipes(ctx context.Context, c *Capture, of []*object) error {
	pipes := map[inodeKey]*ends{}
	var order []*ends
	for _, o := range of {
		k := inodeKey{o.desc.dev(), o.desc.stat.Ino}
		e := pipes[k]
		if e == nil {
			e = &ends{}
			pipes[k] = e
			order = append(order, e)
		}
		e.add(o)
	}
	var all []error
	for _, e := range order {
		if err := c.finishPipe(e); err != nil {
			all = append(all, e.all[0].desc.wrap(err))
		}
		if err := context.Cause(ctx); err != nil {
			return err
		}
	}
	return errors.Join(all...)
}

// add sorts a description by its access mode; a FIFO may be open both ways.
func (e *ends) add(o *object) {
	e.all = append(e.all, o)
	mode := o.desc.flags() & unix.O_ACCMODE
	if mode != unix.O_WRONLY {
		e.read = o
	}
	if mode != unix.O_RDONLY {
		e.write = o
		e.packetWriter = e.packetWriter || o.desc.flags()&unix.O_DIRECT != 0
	}
}

// finishPipe checks one pipe, and copies what is in it unless tasks are running.
func (c *Capture) finishPipe(e *ends) error {
	outside, err := e.outside()
	if c.env.Survey && vanished(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if outside != "" {
		return unsupported("the %s end of %s is held outside of the container", outside, e.all[0].desc.Link)
	}
	if err := e.unread(); err != nil || e.read == nil || c.env.Survey {
		return err
	}
	e.all[0].body.(*blob.Pipe).Data, err = e.peek()
	return err
}

// outside names the end that somebody else holds. A lone end tells by poll(2)
// whether the other exists: POLLHUP on the read end if there is no writer,
// POLLERR on the write end if there is no reader (fs/pipe.c, pipe_poll).
func (e *ends) outside() (string, error) {
	if e.read != nil && e.write != nil {
		return "", nil
	}
	o, other, bit := e.read, "write", int16(unix.POLLHUP)
	if o == nil {
		o, other, bit = e.write, "read", int16(unix.POLLERR)
	}
	fd, err := o.desc.get()
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN | unix.POLLOUT}}
	if _, err := unix.Poll(p, 0); err != nil {
		return "", fmt.Errorf("poll: %w", err)
	}
	if p[0].Revents&bit != 0 {
		return "", nil
	}
	return other, nil
}

// unread refuses data that can't be had: packets, and what is in a FIFO without a
// reader, where the next one would get it. In a pipe nobody will.
func (e *ends) unread() error {
	name := e.all[0].body.(*blob.Pipe).Path
	if !e.packetWriter && (e.read != nil || name == "") {
		return nil
	}
	fd, err := e.all[0].desc.get()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	n, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
	switch {
	case err != nil:
		return fmt.Errorf("FIONREAD: %w", err)
	case n == 0:
		return nil
	case e.packetWriter:
		return unsupported("packets wait in a pipe with O_DIRECT: their limits can't be seen")
	}
	return unsupported("%d bytes wait in FIFO %s, which nobody has open for reading", n, name)
}

// peek copies what is in the pipe with tee(2), which takes nothing out.
func (e *ends) peek() ([]byte, error) {
	fd, err := e.read.desc.get()
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	waiting, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
	if err != nil {
		return nil, fmt.Errorf("FIONREAD: %w", err)
	}
	if waiting == 0 {
		return nil, nil
	}
	var copied [2]int
	if err := unix.Pipe2(copied[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, fmt.Errorf("pipe2: %w", err)
	}
	defer unix.Close(copied[0])
	defer unix.Close(copied[1])
	// As many slots as the original has: tee can't go on where it stopped.
	size := int(e.all[0].body.(*blob.Pipe).Size)
	if _, err := unix.FcntlInt(uintptr(copied[1]), unix.F_SETPIPE_SZ, size); err != nil {
		return nil, fmt.Errorf("F_SETPIPE_SZ %d: %w", size, err)
	}
	n, err := unix.Tee(fd, copied[1], waiting, unix.SPLICE_F_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("tee: %w", err)
	}
	if int(n) != waiting {
		return nil, fmt.Errorf("tee of %d bytes answered %d", waiting, n)
	}
	return readAll(copied[0], waiting)
}

// readAll reads exactly n bytes.
func readAll(fd, n int) ([]byte, error) {
	b := make([]byte, n)
	for done := 0; done < n; {
		m, err := unix.Read(fd, b[done:])
		if err != nil {
			return nil, fmt.Errorf("read: %w", err)
		}
		if m == 0 {
			return nil, fmt.Errorf("read %d of %d bytes", done, n)
		}
		done += m
	}
	return b, nil
}

// openPipe makes both ends when the first description is asked for. They stay
// open until Close: without a reader a write would fail.
func openPipe(_ context.Context, r *Restorer, rec *record) (int, error) {
	b := rec.body.(*blob.Pipe)
	p := r.pipes[b.Inode]
	if p == nil {
		var err error
		if p, err = r.makePipe(b); err != nil {
			return -1, err
		}
	}
	return p.open(rec.file.Flags)
}

// pipe is a restored pipe: a descriptor for each end that no description has yet.
type pipe struct {
	fds   [2]int
	taken [2]bool
}

// makePipe fills the pipe through a descriptor that does not block: an image may
// claim more data than fits.
func (r *Restorer) makePipe(b *blob.Pipe) (*pipe, error) {
	p := &pipe{}
	if err := unix.Pipe2(p.fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, fmt.Errorf("pipe2: %w", err)
	}
	r.pipes[b.Inode] = p
	r.spare = append(r.spare, p.fds[0], p.fds[1])
	return p, fillPipe(p.fds[1], b.Size, r.pipeData(func(p *blob.Pipe) bool { return p.Path == "" && p.Inode == b.Inode }))
}

// pipeData finds the bytes of a pipe: one of its descriptions has them.
func (r *Restorer) pipeData(is func(*blob.Pipe) bool) []byte {
	for _, rec := range r.order {
		if b, ok := rec.body.(*blob.Pipe); ok && len(b.Data) > 0 && is(b) {
			return b.Data
		}
	}
	return nil
}

// fillPipe sets the size and writes the data; fd doesn't block.
func fillPipe(fd int, size uint32, data []byte) error {
	if size != 0 {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, int(size)); err != nil {
			return fmt.Errorf("F_SETPIPE_SZ %d: %w", size, err)
		}
	}
	for len(data) > 0 {
		n, err := unix.Write(fd, data)
		if err != nil {
			return fmt.Errorf("write %d bytes into a pipe of %d: %w", len(data), size, err)
		}
		data = data[n:]
	}
	return nil
}

// open answers a new descriptor of a description with these flags: an end of the
// pipe itself for the first plain one, another opened through /proc for more.
func (p *pipe) open(flags uint32) (int, error) {
	mode := flags & unix.O_ACCMODE
	if mode <= unix.O_WRONLY && flags&oLargeFile == 0 && !p.taken[mode] {
		p.taken[mode] = true
		fd, err := unix.FcntlInt(uintptr(p.fds[mode]), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return -1, fmt.Errorf("dup: %w", err)
		}
		return fd, nil
	}
	return reopen(p.fds[0], flags&^unix.O_DIRECT)
}
