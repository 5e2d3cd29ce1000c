package object

import (
	"errors"
	"fmt"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/sys"

	"golang.org/x/sys/unix"
)

const (
	maxMessage = 4 << 20 // of a queued datagram
	maxQueue   = 1 << 16 // messages
	rcvClosed  = 1       // RCV_SHUTDOWN, include/net/sock.h
)

// peekQueue copies what waits to be read. Datagrams behind the first can only be
// peeked at with SO_PEEK_OFF, which is put back: it has no effect on a program
// that doesn't peek.
func peekQueue(fd int, s *blob.UnixSocket) (err error) {
	waiting, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
	if err != nil {
		return fmt.Errorf("SIOCINQ: %w", err)
	}
	stream := s.Type == unix.SOCK_STREAM
	if stream && waiting == 0 {
		return nil
	}
	was, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF)
	if err != nil {
		return fmt.Errorf("SO_PEEK_OFF: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, 0); err != nil {
		return fmt.Errorf("SO_PEEK_OFF: %w", err)
	}
	defer func() { err = errors.Join(err, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, was)) }()
	if stream {
		return peekStream(fd, s, waiting)
	}
	return peekMessages(fd, s)
}

// peekStream reads in pieces: one call stops where the sender's credentials change.
func peekStream(fd int, s *blob.UnixSocket, waiting int) error {
	buf := make([]byte, waiting)
	done := 0
	for done < waiting {
		n, _, err := peek(fd, buf[done:])
		if err != nil {
			return err
		}
		if n == 0 {
			return fmt.Errorf("peeked at %d of %d bytes", done, waiting)
		}
		done += n
	}
	s.Queue = [][]byte{buf}
	return nil
}

// peekMessages goes through a queue of messages, empty ones included: the kernel
// marks those as peeked at and goes on (net/core/datagram.c).
func peekMessages(fd int, s *blob.UnixSocket) error {
	buf := make([]byte, maxMessage)
	for len(s.Queue) < maxQueue {
		n, from, err := peek(fd, buf)
		if errors.Is(err, unix.EAGAIN) {
			return nil
		}
		if err != nil {
			return err
		}
		if n == 0 && s.Type == unix.SOCK_SEQPACKET && s.Shutdown&rcvClosed != 0 {
			return nil // the end, not a message
		}
		s.Queue = append(s.Queue, append([]byte(nil), buf[:n]...))
		s.QueueFrom = append(s.QueueFrom, sunPath(from))
	}
	return unsupported("more than %d messages in the queue of a unix socket", maxQueue)
}

// peek looks at the next message. Descriptors that came with it are refused, and
// the copies that the kernel makes of them closed.
func peek(fd int, buf []byte) (int, []byte, error) {
	oob := make([]byte, 2048)
	n, oobn, flags, from, err := sys.RecvUnix(fd, buf, oob, unix.MSG_PEEK|unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return 0, nil, fmt.Errorf("peek: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return 0, nil, fmt.Errorf("peek: %w", err)
	}
	rights := flags&unix.MSG_CTRUNC != 0
	for _, m := range messages {
		if m.Header.Level != unix.SOL_SOCKET || m.Header.Type != unix.SCM_RIGHTS && m.Header.Type != scmPidFD {
			continue
		}
		rights = rights || m.Header.Type == unix.SCM_RIGHTS
		fds, err := unix.ParseUnixRights(&unix.SocketControlMessage{
			Header: unix.Cmsghdr{Len: m.Header.Len, Level: unix.SOL_SOCKET, Type: unix.SCM_RIGHTS}, Data: m.Data,
		})
		for _, fd := range fds {
			err = errors.Join(err, unix.Close(fd))
		}
		if err != nil {
			return 0, nil, fmt.Errorf("peek: %w", err)
		}
	}
	if rights {
		return 0, nil, unsupported("descriptors in the queue of a unix socket (SCM_RIGHTS)")
	}
	if flags&unix.MSG_TRUNC != 0 {
		return 0, nil, unsupported("a message of more than %d bytes in the queue of a unix socket", len(buf))
	}
	return n, from, nil
}

// scmPidFD: a pidfd of the sender, for SO_PASSPIDFD (include/linux/socket.h).
const scmPidFD = 4

// roomy lets a sender have everything that was queued under way at once while f
// runs: it counts against the sender's buffer until it is read.
func roomy(fd int, f func() error) (err error) {
	const most = 1 << 28
	size, e1 := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF)
	locked, e2 := unix.GetsockoptInt(fd, unix.SOL_SOCKET, soBufLock)
	if errors.Is(e2, unix.ENOPROTOOPT) { // before Linux 5.14
		e2, locked = nil, -1
	}
	e3 := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, most)
	if err := errors.Join(e1, e2, e3); err != nil {
		return fmt.Errorf("SO_SNDBUFFORCE: %w", err)
	}
	defer func() {
		err = errors.Join(err, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, size/2))
		if locked >= 0 {
			err = errors.Join(err, unix.SetsockoptInt(fd, unix.SOL_SOCKET, soBufLock, locked))
		}
	}()
	return f()
}

// fillQueue sends messages from a socket that is connected to their receiver.
func fillQueue(from int, queue [][]byte) error {
	if len(queue) == 0 {
		return nil
	}
	return roomy(from, func() error {
		for _, m := range queue {
			if err := sendAll(from, m); err != nil {
				return err
			}
		}
		return nil
	})
}

// sendAll sends all of a stream's bytes, or one message, which goes whole or not at
// all. It never waits: what does not fit now never will.
func sendAll(fd int, b []byte) error {
	for {
		n, err := unix.SendmsgN(fd, b, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		if err != nil {
			return fmt.Errorf("send %d queued bytes: %w", len(b), err)
		}
		if b = b[n:]; len(b) == 0 {
			return nil
		}
	}
}
