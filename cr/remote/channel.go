package remote

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/stasis-cr/stasis/cr/errs"
	"golang.org/x/sys/unix"
)

var le = binary.LittleEndian

// Channel passes open files into the processes of one tree. The process that it
// was opened in has the other end at a number of the caller's choice, and so has
// every process that is born from it; who receives gets what was sent first, so
// one Send goes on at a time: others of [Together] wait.
type Channel struct {
	sock int
	fd   FD
	busy bool // a Send goes on
}

// OpenChannel opens a channel into o's process. at, the number of its end, must
// be free there.
func OpenChannel(ctx context.Context, o *Owned, at FD) (*Channel, error) {
	defer o.Reset()
	pair, err := o.Push(make([]byte, 8))
	if err != nil {
		return nil, err
	}
	if _, err := o.Call(ctx, unix.SYS_SOCKETPAIR, unix.AF_UNIX, unix.SOCK_SEQPACKET, 0, uint64(pair)); err != nil {
		return nil, fmt.Errorf("socketpair: %w", err)
	}
	b := make([]byte, 8)
	if err := o.Read(pair, b); err != nil {
		return nil, err
	}
	ours, theirs := FD(le.Uint32(b)), FD(le.Uint32(b[4:]))
	sock, err := take(o.t.TID, ours)
	if err != nil {
		return nil, err
	}
	c := &Channel{sock: sock, fd: at}
	if err := c.place(ctx, o, ours, theirs); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// place moves the task's end to its number and closes the rest.
func (c *Channel) place(ctx context.Context, o *Owned, ours, theirs FD) error {
	var calls []Call
	if theirs != c.fd {
		calls = append(calls,
			Call{NR: unix.SYS_DUP3, Args: [6]uint64{uint64(theirs), uint64(c.fd)}},
			Call{NR: unix.SYS_CLOSE, Args: [6]uint64{uint64(theirs)}})
	}
	if ours != c.fd { // else dup3 has closed it
		calls = append(calls, Call{NR: unix.SYS_CLOSE, Args: [6]uint64{uint64(ours)}})
	}
	if err := o.Batch(ctx, calls); err != nil {
		return err
	}
	for i := range calls {
		if _, err := calls[i].Result(); err != nil {
			return fmt.Errorf("place the channel at %d: %w", c.fd, err)
		}
	}
	return nil
}

// take duplicates a descriptor of a task into our process.
func take(pid int, fd FD) (int, error) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return -1, fmt.Errorf("pidfd_open: %w", err)
	}
	defer unix.Close(pidfd)
	got, err := unix.PidfdGetfd(pidfd, int(fd), 0)
	if err != nil {
		return -1, fmt.Errorf("pidfd_getfd: %w", err)
	}
	return got, nil
}

// Take duplicates a descriptor of the task into our process; name is for its
// errors. The task keeps its own.
func (o *Owned) Take(fd FD, name string) (*os.File, error) {
	got, err := take(o.t.TID, fd)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	unix.CloseOnExec(got)
	return os.NewFile(uintptr(got), name), nil
}

// FD is the number of the channel's end in the processes.
func (c *Channel) FD() FD { return c.fd }

// Close closes our end.
func (c *Channel) Close() error { return unix.Close(c.sock) }

// sendGroup bounds the messages that wait in the socket at once: what fits into
// its buffer, and what may be in flight (unix(7), ETOOMANYREFS).
const sendGroup = 64

// Send passes files into the process of o and returns their numbers there: each
// arrives at the lowest that is free, in order, not close-on-exec.
func (c *Channel) Send(ctx context.Context, o Caller, files []*os.File) ([]FD, error) {
	if err := c.begin(o); err != nil {
		return nil, err
	}
	defer func() { c.busy = false }()
	fds := make([]FD, 0, len(files))
	for len(files) > 0 {
		n := min(len(files), sendGroup)
		got, err := c.send(ctx, o, files[:n])
		if err != nil {
			return nil, err
		}
		fds, files = append(fds, got...), files[n:]
	}
	return fds, nil
}

// begin waits until nobody sends, which can only be another of the pieces of work
// that o idles for.
func (c *Channel) begin(o Caller) error {
	for c.busy {
		if w, ok := o.(*Owned); !ok || !w.rest() {
			return errors.New("the channel is in use, and nobody goes on who could end that")
		}
	}
	c.busy = true
	return nil
}

// One message as the task receives it: struct msghdr, struct iovec, a byte of
// data, and the control message with the descriptor.
const (
	msghdrSize   = 56
	iovecAt      = msghdrSize
	dataAt       = iovecAt + 16
	controlAt    = dataAt + 8
	controlSize  = 24 // cmsghdr 16, descriptor 4, padding
	cmsgFD       = controlAt + 16
	messageSize  = controlAt + controlSize
	controlLenAt = 40
)

func (c *Channel) send(ctx context.Context, o Caller, files []*os.File) ([]FD, error) {
	defer o.Reset()
	at, err := o.Push(make([]byte, messageSize*len(files)))
	if err != nil {
		return nil, err
	}
	o.Reset()
	var b []byte
	calls := make([]Call, len(files))
	for i, f := range files {
		msg := at + Addr(i*messageSize)
		b = append(b, message(msg)...)
		calls[i] = Call{NR: unix.SYS_RECVMSG, Args: [6]uint64{uint64(c.fd), uint64(msg), unix.MSG_DONTWAIT}}
		if err := unix.Sendmsg(c.sock, []byte{0}, unix.UnixRights(int(f.Fd())), nil, unix.MSG_NOSIGNAL); err != nil {
			return nil, fmt.Errorf("send %s: %w", f.Name(), err)
		}
	}
	if _, err := o.Push(b); err != nil {
		return nil, err
	}
	if err := o.Batch(ctx, calls); err != nil {
		return nil, err
	}
	if err := o.Read(at, b); err != nil {
		return nil, err
	}
	return received(calls, files, b)
}

// message encodes an empty msghdr at an address, with room for one descriptor.
func message(at Addr) []byte {
	b := make([]byte, messageSize)
	le.PutUint64(b[16:], uint64(at)+iovecAt)   // msg_iov
	le.PutUint64(b[24:], 1)                    // msg_iovlen
	le.PutUint64(b[32:], uint64(at)+controlAt) // msg_control
	le.PutUint64(b[controlLenAt:], controlSize)
	le.PutUint64(b[iovecAt:], uint64(at)+dataAt)
	le.PutUint64(b[iovecAt+8:], 1)
	return b
}

func received(calls []Call, files []*os.File, b []byte) ([]FD, error) {
	fds := make([]FD, len(calls))
	for i := range calls {
		if _, err := calls[i].Result(); err != nil {
			return nil, fmt.Errorf("receive %s: %w", files[i].Name(), err)
		}
		m := b[i*messageSize:]
		if le.Uint64(m[controlLenAt:]) < cmsgFD-controlAt+4 {
			return nil, fmt.Errorf("receive %s: no descriptor came, RLIMIT_NOFILE may be too low: %w", files[i].Name(), errs.ErrUnsupported)
		}
		fds[i] = FD(le.Uint32(m[cmsgFD:]))
	}
	return fds, nil
}
