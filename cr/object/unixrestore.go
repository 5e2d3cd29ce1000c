package object

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/sys"

	"golang.org/x/sys/unix"
)

// unixMaker makes all unix sockets of a container, on a thread inside it.
type unixMaker struct {
	r         *Restorer
	recs      []*record
	byIno     map[uint32]*record
	listening map[string]bool // names
	standIns  map[string]*standIn
	temp      []int // closed peers and the like, closed at the end
}

// standIn is a listener that only gives connections their name.
type standIn struct {
	fd   int
	sock *blob.UnixSocket
	id   fileID
}

// sock is the record's own message.
func sock(rec *record) *blob.UnixSocket { return rec.body.(*blob.UnixSocket) }

// prepareUnixSockets goes from what needs names for a moment only to what keeps
// them: connections, then listeners and datagram sockets, then connections that
// wait in a listener.
func prepareUnixSockets(_ context.Context, r *Restorer, recs []*record) (err error) {
	m := &unixMaker{
		r: r, recs: recs, byIno: map[uint32]*record{},
		listening: map[string]bool{}, standIns: map[string]*standIn{},
	}
	defer func() {
		for _, fd := range m.temp {
			err = errors.Join(err, unix.Close(fd))
		}
	}()
	if err := m.check(); err != nil {
		return err
	}
	for _, step := range []func(*record) error{m.connection, m.create} {
		if err := each(recs, step); err != nil {
			return err
		}
	}
	if err := m.dropStandIns(); err != nil {
		return err
	}
	// Files that were deleted go first: their names may have been taken since.
	order := slices.Clone(recs)
	slices.SortStableFunc(order, func(a, b *record) int { return cmp.Compare(gone(a), gone(b)) })
	for _, step := range []func(*record) error{m.bound, m.joined, m.fill, m.waiting, m.finish} {
		if err := each(order, step); err != nil {
			return err
		}
	}
	return nil
}

func gone(rec *record) int {
	if sock(rec).Gone {
		return 0
	}
	return 1
}

// each runs one step for all records and names the one it fails at.
func each(recs []*record, step func(*record) error) error {
	for _, rec := range recs {
		if err := step(rec); err != nil {
			return rec.wrap(err)
		}
	}
	return nil
}

// check refuses records that contradict each other.
func (m *unixMaker) check() error {
	for _, rec := range m.recs {
		if m.byIno[sock(rec).Inode] != nil {
			return rec.wrap(corrupt("two unix sockets have inode %d", sock(rec).Inode))
		}
		m.byIno[sock(rec).Inode] = rec
		if sock(rec).Listening {
			m.listening[string(sock(rec).Name)] = true
		}
	}
	return each(m.recs, func(rec *record) error {
		s := sock(rec)
		switch s.Type {
		case unix.SOCK_STREAM, unix.SOCK_SEQPACKET, unix.SOCK_DGRAM:
		default:
			return corrupt("a unix socket of type %d", s.Type)
		}
		p := m.byIno[s.Peer]
		if s.Peer == 0 {
			return nil
		}
		if p == nil || p == rec || sock(p).Type != s.Type || s.Type != unix.SOCK_DGRAM && sock(p).Peer != s.Inode {
			return corrupt("peer %d of a unix socket is none", s.Peer)
		}
		return nil
	})
}

// mutual says whether rec is connected to a peer that is connected to it, or was
// until that was closed: what socketpair(2) and connect(2) on streams make.
func (m *unixMaker) mutual(rec *record) bool {
	s := sock(rec)
	if !s.Connected || s.Pending != 0 || len(s.PeerName) > 0 {
		return false
	}
	return s.Peer == 0 || sock(m.byIno[s.Peer]).Peer == s.Inode
}

// connection makes both ends of a connection, and fills their queues.
func (m *unixMaker) connection(rec *record) error {
	if rec.fd >= 0 || !m.mutual(rec) {
		return nil
	}
	peer := m.byIno[sock(rec).Peer] // nil: closed
	server, client := rec, peer
	if peer != nil && m.serves(peer) > m.serves(rec) {
		server, client = peer, rec
	}
	var fds [2]int
	var err error
	if sock(rec).Type == unix.SOCK_DGRAM || m.serves(server) == 0 {
		err = asPeer(sock(rec), func() (err error) {
			fds, err = unix.Socketpair(unix.AF_UNIX, int(sock(rec).Type)|unix.SOCK_CLOEXEC, 0)
			return err
		})
	} else {
		fds, err = m.accept(sock(server), client)
	}
	if err != nil {
		return fmt.Errorf("make a connection: %w", err)
	}
	server.fd = fds[0]
	if client == nil {
		m.temp = append(m.temp, fds[1])
		return fillQueue(fds[1], sock(server).Queue)
	}
	client.fd = fds[1]
	return errors.Join(fillQueue(fds[1], sock(server).Queue), fillQueue(fds[0], sock(client).Queue))
}

// serves ranks the ends of a connection: the one that was accepted has the
// listener's name, and was made later.
func (m *unixMaker) serves(rec *record) uint64 {
	s := sock(rec)
	if len(s.Name) == 0 {
		return 0
	}
	if m.listening[string(s.Name)] {
		return 1<<32 + uint64(s.Inode)
	}
	return uint64(s.Inode)
}

// accept makes a connection whose server end has a name, as one is made: by a
// listener of that name, which is there only for as long.
func (m *unixMaker) accept(server *blob.UnixSocket, client *record) (fds [2]int, err error) {
	l, err := m.standIn(server)
	if err != nil {
		return fds, err
	}
	if fds[1], err = unix.Socket(unix.AF_UNIX, int(server.Type)|unix.SOCK_CLOEXEC, 0); err != nil {
		return fds, err
	}
	if client != nil && len(sock(client).Name) > 0 {
		err = m.bind(fds[1], sock(client))
	}
	if err == nil && client != nil { // what the client sees is who listened
		err = asPeer(sock(client), func() error { return unix.Listen(l.fd, 1) })
	}
	if err == nil {
		err = inPlace(server, func() error { return m.connectAs(server, fds[1]) })
	}
	if err == nil {
		fds[0], _, err = unix.Accept4(l.fd, unix.SOCK_CLOEXEC)
	}
	if err != nil {
		return fds, errors.Join(err, unix.Close(fds[1]))
	}
	return fds, nil
}

// connectAs connects to a stand-in as the user that the server end saw. One that
// may not enter the directory any more connected before that was so.
func (m *unixMaker) connectAs(server *blob.UnixSocket, fd int) error {
	err := asPeer(server, func() error { return sys.ConnectUnix(fd, server.Name) })
	if errors.Is(err, unix.EACCES) {
		err = sys.ConnectUnix(fd, server.Name)
	}
	return err
}

// asPeer runs f as the user that SO_PEERCRED of s names: the kernel notes who
// called socketpair, listen or connect. Programs trust it, and must not take a
// peer for the root that restored it. The process id it has can't be had.
func asPeer(s *blob.UnixSocket, f func() error) error {
	if s.PeerUid == ^uint32(0) { // nobody: never connected
		return f()
	}
	return sys.AsUser(s.PeerUid, s.PeerGid, f)
}

// standIn answers the listener of a name; connections of one name share it.
func (m *unixMaker) standIn(s *blob.UnixSocket) (*standIn, error) {
	key := fmt.Sprintf("%d %s %s", s.Type, s.Dir, s.Name)
	if l := m.standIns[key]; l != nil {
		return l, nil
	}
	fd, err := unix.Socket(unix.AF_UNIX, int(s.Type)|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	l := &standIn{fd: fd, sock: s}
	err = inPlace(s, func() (err error) {
		l.id, err = bindName(fd, s)
		return err
	})
	if err == nil {
		err = unix.Listen(fd, 1)
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	m.standIns[key] = l
	return l, nil
}

// dropStandIns frees the names for those that keep them. Accepted sockets go on
// sharing the address, as they did with their listener.
func (m *unixMaker) dropStandIns() error {
	var all error
	for _, l := range m.standIns {
		all = errors.Join(all, unix.Close(l.fd), inPlace(l.sock, func() error { return unlinkName(l.sock, l.id) }))
	}
	return all
}

// create makes what is not an end of a connection.
func (m *unixMaker) create(rec *record) (err error) {
	if rec.fd < 0 {
		rec.fd, err = unix.Socket(unix.AF_UNIX, int(sock(rec).Type)|unix.SOCK_CLOEXEC, 0)
	}
	return err
}

// bound gives a socket its name, unless a stand-in did. What comes to a socket
// whose file was deleted must come before that is repeated.
func (m *unixMaker) bound(rec *record) error {
	s := sock(rec)
	if len(s.Name) == 0 || s.Type != unix.SOCK_DGRAM && m.mutual(rec) {
		return nil
	}
	if s.Gone && s.Type == unix.SOCK_DGRAM {
		return inPlace(s, func() error { return m.boundGone(rec) })
	}
	if err := m.bind(rec.fd, s); err != nil {
		return err
	}
	if !s.Listening {
		return nil
	}
	if err := asPeer(s, func() error { return unix.Listen(rec.fd, int(s.Backlog)) }); err != nil {
		return fmt.Errorf("listen on %q: %w", s.Name, err)
	}
	return nil
}

// boundGone does with a deleted name, in the moment that it exists, all that needs
// the name: connect those that were connected to it, and fill its queue.
func (m *unixMaker) boundGone(rec *record) error {
	s := sock(rec)
	id, err := bindName(rec.fd, s)
	if err != nil {
		return err
	}
	for _, c := range m.recs {
		if sock(c).Peer == s.Inode && !m.mutual(c) {
			if err := sys.ConnectUnix(c.fd, s.Name); err != nil {
				return fmt.Errorf("connect to %q: %w", s.Name, err)
			}
		}
	}
	if !m.mutual(rec) {
		err = m.send(rec)
	}
	return errors.Join(err, unlinkName(s, id))
}

// joined connects datagram sockets to those that are named and in place.
func (m *unixMaker) joined(rec *record) error {
	s := sock(rec)
	if s.Type != unix.SOCK_DGRAM || !s.Connected || m.mutual(rec) {
		return nil
	}
	to := &blob.UnixSocket{Name: s.PeerName}
	if p := m.byIno[s.Peer]; p != nil {
		to = sock(p)
	}
	if to.Gone {
		return nil // bound did it
	}
	if len(to.Name) == 0 {
		return corrupt("a peer without a name")
	}
	if err := inPlace(to, func() error { return sys.ConnectUnix(rec.fd, to.Name) }); err != nil {
		return fmt.Errorf("connect to %q: %w", to.Name, err)
	}
	return nil
}

// fill fills the queues of named datagram sockets.
func (m *unixMaker) fill(rec *record) error {
	s := sock(rec)
	if s.Type != unix.SOCK_DGRAM || m.mutual(rec) || s.Gone || len(s.Queue) == 0 {
		return nil
	}
	if len(s.Name) == 0 {
		return corrupt("a queue on a datagram socket that nobody can have sent to")
	}
	return inPlace(s, func() error { return m.send(rec) })
}

// send queues messages on a named datagram socket: from its peer, which is the
// only one the kernel lets send to a connected one, else from a socket of the
// sender's name, else from one without a name.
func (m *unixMaker) send(rec *record) error {
	s := sock(rec)
	if len(s.Queue) == 0 {
		return nil
	}
	nobody, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(nobody)
	for i, b := range s.Queue {
		from := nobody
		if p := m.byIno[s.Peer]; p != nil {
			from = p.fd
		} else if i < len(s.QueueFrom) {
			from = m.named(s.QueueFrom[i], nobody)
		}
		err := roomy(from, func() error { return sys.SendUnix(from, b, s.Name) })
		if err != nil {
			return fmt.Errorf("send %d queued bytes to %q: %w", len(b), s.Name, err)
		}
	}
	return nil
}

// named finds the socket that a message came from.
func (m *unixMaker) named(name []byte, otherwise int) int {
	for _, rec := range m.recs {
		s := sock(rec)
		if len(name) > 0 && s.Type == unix.SOCK_DGRAM && !s.Gone && bytes.Equal(s.Name, name) {
			return rec.fd
		}
	}
	return otherwise
}

// waiting makes a connection that its listener has not accepted.
func (m *unixMaker) waiting(rec *record) error {
	s := sock(rec)
	if s.Pending == 0 {
		return nil
	}
	l := m.byIno[s.Pending]
	if l == nil || !sock(l).Listening || sock(l).Gone {
		return corrupt("it waits for a listener that is none")
	}
	// A listener whose queue is full would make us wait for a program that is not
	// running yet.
	if err := unix.SetNonblock(rec.fd, true); err != nil {
		return err
	}
	err := inPlace(sock(l), func() error {
		return sys.AsUser(s.SockUid, s.SockGid, func() error { return sys.ConnectUnix(rec.fd, sock(l).Name) })
	})
	err = errors.Join(err, unix.SetNonblock(rec.fd, false))
	if err != nil {
		return fmt.Errorf("connect to %q: %w", sock(l).Name, err)
	}
	return nil
}

// finish sets what must not be in the way before.
func (m *unixMaker) finish(rec *record) error {
	s := sock(rec)
	if err := unix.Fchown(rec.fd, int(s.SockUid), int(s.SockGid)); err != nil {
		return fmt.Errorf("chown: %w", err)
	}
	if s.Shutdown&3 != 0 {
		if err := unix.Shutdown(rec.fd, int(s.Shutdown&3)-1); err != nil { // SHUT_RD is 0
			return fmt.Errorf("shutdown: %w", err)
		}
	}
	return m.r.setOptions(rec.fd, s.Options, commonOptions())
}
