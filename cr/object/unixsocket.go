package object

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/sys"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// A unix socket is saved with its queue and its connection, if both ends are in the
// container. Names are bound again where they were.
func unixSocketKind() Kind {
	return Kind{
		Tag: "unix", Rev: 1,
		New: func() proto.Message { return &blob.UnixSocket{} },
		Match: func(_ *Capture, d *Desc) bool {
			return strings.HasPrefix(d.Link, "socket:[") && d.domain == unix.AF_UNIX
		},
		Capture: captureUnixSocket,
		Finish:  finishUnixSockets,
		Prepare: prepareUnixSockets,
		Open:    openPrepared,
	}
}

// captureUnixSocket takes what the socket says of itself; its peer and its queue
// come when all sockets are known.
func captureUnixSocket(_ context.Context, c *Capture, d *Desc) (proto.Message, error) {
	fd, err := d.get()
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	if err := c.ourNet(fd); err != nil {
		return nil, err
	}
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return nil, fmt.Errorf("SO_TYPE: %w", err)
	}
	if n := d.info.SCMFDs; n > 0 {
		return nil, unsupported("a unix socket with %d descriptors in its queue (SCM_RIGHTS)", n)
	}
	s := &blob.UnixSocket{
		Type: uint32(kind), Inode: uint32(d.stat.Ino), SockUid: d.stat.Uid, SockGid: d.stat.Gid,
	}
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return nil, fmt.Errorf("SO_PEERCRED: %w", err)
	}
	s.PeerUid, s.PeerGid = cred.Uid, cred.Gid
	s.Options, err = readOptions(fd, commonOptions())
	return s, err
}

// finishUnixSockets adds what the kernel's list of sockets tells: names, peers,
// states.
func finishUnixSockets(ctx context.Context, c *Capture, of []*object) error {
	socks, err := c.unixSockets(ctx)
	if err != nil {
		return err
	}
	u := unixSet{c: c, socks: socks, ours: map[uint32]*object{}, waits: map[uint32]uint32{}}
	for _, o := range of {
		ino := o.body.(*blob.UnixSocket).Inode
		u.ours[ino] = o
		if g := socks[ino]; g != nil {
			for _, client := range g.pending {
				u.waits[client] = ino
			}
		}
	}
	var all []error
	for _, o := range of {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		err := u.finish(o)
		if err != nil && (!c.env.Survey || !vanished(err)) {
			all = append(all, o.desc.wrap(err))
		}
	}
	return errors.Join(all...)
}

// unixSet is all unix sockets of the container and, for looking up peers, of its
// network namespace.
type unixSet struct {
	c     *Capture
	socks map[uint32]*unixDiag
	ours  map[uint32]*object
	waits map[uint32]uint32 // ends that are not accepted yet, and their listeners
}

// finish completes one record.
func (u *unixSet) finish(o *object) error {
	s := o.body.(*blob.UnixSocket)
	g := u.socks[s.Inode]
	if g == nil {
		return fmt.Errorf("%s is not in the kernel's list: %w", o.desc.Link, unix.ENOENT)
	}
	fd, err := o.desc.get()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	s.Name, s.Shutdown = g.name, uint32(g.shutdown)
	if err := u.place(fd, s); err != nil {
		return err
	}
	if g.state == stateListen {
		s.Listening, s.Backlog = true, g.backlog
		u.dropped(o, g)
		return nil
	}
	if err := u.peer(fd, s, g); err != nil {
		return err
	}
	if u.c.env.Survey {
		return nil
	}
	return peekQueue(fd, s)
}

// dropped notes connections from elsewhere that a listener has not accepted.
func (u *unixSet) dropped(o *object, g *unixDiag) {
	n := 0
	for _, ino := range g.pending {
		if u.ours[ino] == nil {
			n++
		}
	}
	if n > 0 {
		u.c.note("pid %d fd %d: %d connections that wait to be accepted on %q will be reset",
			o.desc.PID, o.desc.FD, n, o.body.(*blob.UnixSocket).Name)
	}
}

// peer finds the other end of a connection. A peer of 0 was closed, or is what a
// listener has yet to accept.
func (u *unixSet) peer(fd int, s *blob.UnixSocket, g *unixDiag) error {
	// The state tells nothing of a datagram socket: it changes, too, when
	// somebody connects to it (net/unix/af_unix.c, unix_dgram_connect).
	s.Connected = g.peered || g.state == stateEstablished && s.Type != unix.SOCK_DGRAM
	s.Peer = g.peer
	if !s.Connected {
		return nil
	}
	if g.peer == 0 {
		s.Pending = u.waits[s.Inode]
		if s.Pending == 0 {
			return nil
		}
		unread, err := unix.IoctlGetInt(fd, unix.TIOCOUTQ)
		if err != nil {
			return fmt.Errorf("SIOCOUTQ: %w", err)
		}
		if unread > 0 {
			return unsupported("data was sent on a unix connection that is not accepted yet")
		}
		return nil
	}
	p := u.socks[g.peer]
	if u.ours[g.peer] == nil {
		return u.outsider(s, p)
	}
	if p != nil && p.peer != s.Inode && len(p.name) == 0 {
		return unsupported("a unix socket connected one way to a socket without a name")
	}
	return nil
}

// outsider decides about a peer outside of the container: a datagram socket can
// be connected again by name.
func (u *unixSet) outsider(s *blob.UnixSocket, p *unixDiag) error {
	if s.Type != unix.SOCK_DGRAM {
		return unsupported("a unix connection to a socket outside of the container (inode %d)", s.Peer)
	}
	if p == nil || len(p.name) == 0 {
		return unsupported("a unix datagram socket connected to one without a name outside of the container")
	}
	if !u.c.env.ExtUnixSk {
		return unsupported("a unix datagram socket connected to %q outside of the container: "+
			"allow that with --ext-unix-sk", p.name)
	}
	s.Peer, s.PeerName = 0, p.name
	return nil
}

// place finds out about the file that a socket is bound to. The name is what the
// program said; where it led to depends on the working directory or root it had.
func (u *unixSet) place(fd int, s *blob.UnixSocket) error {
	if len(s.Name) == 0 || s.Name[0] == 0 {
		return nil
	}
	f, err := sys.UnixSocketFile(fd)
	if err != nil {
		return fmt.Errorf("file of unix socket %q: %w", s.Name, err)
	}
	defer unix.Close(f)
	link, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f))
	if err != nil {
		return err
	}
	var st unix.Statx_t
	if err := unix.Statx(f, "", unix.AT_EMPTY_PATH, statxMask, &st); err != nil {
		return fmt.Errorf("stat %s: %w", link, err)
	}
	s.Mode, s.Uid, s.Gid = uint32(st.Mode), st.Uid, st.Gid
	is, err := u.c.stat(link)
	s.Gone = err != nil || !same(&is, &st)
	if s.Gone {
		link = strings.TrimSuffix(link, deleted)
	}
	var ok bool
	if s.Dir, ok = boundIn(string(s.Name), link); ok {
		return nil
	}
	if path.IsAbs(string(s.Name)) { // through symbolic links, as in /var/run
		return nil
	}
	return unsupported("unix socket %q, bound to %s by a path that can't be followed back", s.Name, link)
}

// boundIn answers the directory in which name means the file: the working
// directory of a relative name, the root that a changed root made of an absolute
// one. It is empty if the name is the file's path.
func boundIn(name, file string) (string, bool) {
	dir, ok := strings.CutSuffix(file, path.Clean("/"+name))
	if !ok || strings.HasPrefix(path.Clean(name), "..") {
		return "", false
	}
	if dir == "" && !path.IsAbs(name) {
		dir = "/"
	}
	return dir, true
}
