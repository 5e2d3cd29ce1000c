package object

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/sys"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// An inet socket is saved while it has no connection that a peer elsewhere knows
// of: TCP that listens or is not connected, and UDP.
func inetSocketKind() Kind {
	return Kind{
		Tag: "inet", Rev: 1,
		New: func() proto.Message { return &blob.InetSocket{} },
		Match: func(_ *Capture, d *Desc) bool {
			return strings.HasPrefix(d.Link, "socket:[") && (d.domain == unix.AF_INET || d.domain == unix.AF_INET6)
		},
		Capture: captureInetSocket,
		Prepare: prepareInetSockets,
		Open:    openPrepared,
	}
}

// captureInetSocket asks a duplicate of the socket: everything that is saved, the
// socket tells itself.
func captureInetSocket(_ context.Context, c *Capture, d *Desc) (proto.Message, error) {
	fd, err := d.get()
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	if err := c.ourNet(fd); err != nil {
		return nil, err
	}
	s := &blob.InetSocket{Family: uint32(d.domain), Uid: d.stat.Uid, Gid: d.stat.Gid}
	kind, e1 := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	protocol, e2 := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err := errors.Join(e1, e2); err != nil {
		return nil, err
	}
	s.Type, s.Protocol = uint32(kind), uint32(protocol)
	local, err := unix.Getsockname(fd)
	if err != nil {
		return nil, fmt.Errorf("getsockname: %w", err)
	}
	s.Local, s.LocalPort, s.Scope = address(local)
	switch {
	case isTCP(s):
		err = c.stream(d, fd, s)
	case isUDP(s):
		err = c.datagrams(d, fd, s)
	default:
		err = unsupported("an %s socket of type %d, protocol %d", family(d.domain), kind, protocol)
	}
	if err != nil {
		return nil, err
	}
	s.Options, err = readOptions(fd, optionsOf(s))
	return s, err
}

func isTCP(s *blob.InetSocket) bool {
	return s.Type == unix.SOCK_STREAM && (s.Protocol == unix.IPPROTO_TCP || s.Protocol == unix.IPPROTO_MPTCP)
}

func isUDP(s *blob.InetSocket) bool {
	return s.Type == unix.SOCK_DGRAM && s.Protocol == unix.IPPROTO_UDP
}

// optionsOf lists what is saved of, and may be set on, a socket.
func optionsOf(s *blob.InetSocket) []option {
	return append(commonOptions(), inetOptions(int(s.Family), int(s.Protocol))...)
}

// datagrams looks at a UDP socket. What waits in it is given up, as a network may
// do with any datagram.
func (c *Capture) datagrams(d *Desc, fd int, s *blob.InetSocket) error {
	if remote, err := unix.Getpeername(fd); err == nil {
		s.Remote, s.RemotePort, s.RemoteScope = address(remote)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
	if err != nil {
		return fmt.Errorf("SIOCINQ: %w", err)
	}
	if n > 0 {
		c.note("pid %d fd %d: datagrams that wait on %s are dropped", d.PID, d.FD, addrPort(s.Local, s.LocalPort))
	}
	return nil
}

// ourNet refuses a socket of another network namespace than the container's: it
// would be made in the wrong one.
func (c *Capture) ourNet(fd int) error {
	ns, err := sys.SocketNetNS(fd)
	if err != nil {
		return fmt.Errorf("network namespace: %w", err)
	}
	defer unix.Close(ns)
	var st unix.Stat_t
	if err := unix.Fstat(ns, &st); err != nil {
		return fmt.Errorf("network namespace: %w", err)
	}
	if st.Ino != c.netns {
		return unsupported("a socket of a network namespace that is not the container's")
	}
	return nil
}

// stream looks at the state of a TCP socket. Offsets are those of struct tcp_info
// (include/uapi/linux/tcp.h), where a listener keeps the length of its queue in
// tcpi_unacked and the limit in tcpi_sacked (net/ipv4/tcp.c, tcp_get_info).
func (c *Capture) stream(d *Desc, fd int, s *blob.InetSocket) error {
	info, err := sys.Getsockopt(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil || len(info) < 32 {
		return fmt.Errorf("TCP_INFO of %d bytes: %w", len(info), err)
	}
	switch info[0] {
	case stateClose:
		return ended(fd, s)
	case stateListen:
		s.Listening, s.Backlog = true, binary.LittleEndian.Uint32(info[28:])
		if n := binary.LittleEndian.Uint32(info[24:]); n > 0 {
			c.note("pid %d fd %d: %d connections that wait to be accepted on %s will be reset",
				d.PID, d.FD, n, addrPort(s.Local, s.LocalPort))
		}
		return nil
	}
	peer := "a peer"
	if remote, err := unix.Getpeername(fd); err == nil {
		ip, port, _ := address(remote)
		peer = addrPort(ip, port)
	}
	what := "an established TCP connection"
	if info[0] != stateEstablished {
		what = "a TCP connection that is being set up or closed"
	}
	return unsupported("%s with %s: this version saves none, with --tcp-established neither; close it first",
		what, peer)
}

// ended tells a connection that is over from a socket that never had one: only
// of the first the kernel says that nothing more will come (net/ipv4/tcp.c,
// tcp_poll). Its address is no longer its own.
func ended(fd int, s *blob.InetSocket) error {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
	if _, err := unix.Poll(p, 0); err != nil {
		return fmt.Errorf("poll: %w", err)
	}
	if p[0].Revents&unix.POLLRDHUP == 0 {
		return nil
	}
	s.Ended, s.Local, s.LocalPort, s.Scope = true, nil, 0, 0
	unread, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
	if err != nil {
		return fmt.Errorf("SIOCINQ: %w", err)
	}
	if unread > 0 {
		return unsupported("a TCP connection that is over, with %d bytes that nobody has read", unread)
	}
	return nil
}

// address splits a socket address. An unbound one is empty.
func address(sa unix.Sockaddr) (ip []byte, port, scope uint32) {
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		ip, port = a.Addr[:], uint32(a.Port)
	case *unix.SockaddrInet6:
		ip, port, scope = a.Addr[:], uint32(a.Port), a.ZoneId
	}
	if addr, ok := netip.AddrFromSlice(ip); ok && addr.IsUnspecified() && port == 0 {
		return nil, 0, 0
	}
	return ip, port, scope
}

func addrPort(ip []byte, port uint32) string {
	a, _ := netip.AddrFromSlice(ip)
	return netip.AddrPortFrom(a, uint16(port)).String()
}

func sockaddr(ip []byte, port, scope uint32) (unix.Sockaddr, error) {
	if port > 0xffff {
		return nil, corrupt("port %d", port)
	}
	switch len(ip) {
	case 4:
		return &unix.SockaddrInet4{Addr: [4]byte(ip), Port: int(port)}, nil
	case 16:
		return &unix.SockaddrInet6{Addr: [16]byte(ip), Port: int(port), ZoneId: scope}, nil
	}
	return nil, corrupt("an address of %d bytes", len(ip))
}

// prepareInetSockets makes the sockets on a thread of the container's network
// namespace: a socket belongs to the one it was made in.
func prepareInetSockets(_ context.Context, r *Restorer, recs []*record) error {
	for _, rec := range recs {
		if err := r.makeInetSocket(rec, rec.body.(*blob.InetSocket)); err != nil {
			return rec.wrap(err)
		}
	}
	return nil
}

// makeInetSocket makes no other sockets than those that are saved: an image must
// not get the container a raw one.
func (r *Restorer) makeInetSocket(rec *record, s *blob.InetSocket) error {
	if s.Family != unix.AF_INET && s.Family != unix.AF_INET6 || !isTCP(s) && !isUDP(s) {
		return corrupt("a socket of family %d, type %d, protocol %d", s.Family, s.Type, s.Protocol)
	}
	fd, err := unix.Socket(int(s.Family), int(s.Type)|unix.SOCK_CLOEXEC, int(s.Protocol))
	if err != nil {
		return fmt.Errorf("socket %d %d %d: %w", s.Family, s.Type, s.Protocol, err)
	}
	rec.fd = fd
	if err := unix.Fchown(fd, int(s.Uid), int(s.Gid)); err != nil { // sk_uid follows: net/socket.c, sockfs_setattr
		return fmt.Errorf("chown: %w", err)
	}
	if err := r.setOptions(fd, s.Options, optionsOf(s)); err != nil {
		return err
	}
	if len(s.Local) > 0 {
		if err := bindInet(fd, s); err != nil {
			return err
		}
	}
	if len(s.Remote) > 0 {
		to, err := sockaddr(s.Remote, s.RemotePort, s.RemoteScope)
		if err != nil {
			return err
		}
		if err := unix.Connect(fd, to); err != nil {
			return fmt.Errorf("connect to %s: %w", addrPort(s.Remote, s.RemotePort), err)
		}
	}
	if s.Ended {
		// It fails and does what is wanted all the same: reads find the end of the
		// stream and writes a broken pipe (net/ipv4/af_inet.c, inet_shutdown).
		if err := unix.Shutdown(fd, unix.SHUT_RDWR); err != nil && !errors.Is(err, unix.ENOTCONN) {
			return fmt.Errorf("shutdown: %w", err)
		}
	}
	if !s.Listening {
		return nil
	}
	if err := unix.Listen(fd, int(s.Backlog)); err != nil {
		return fmt.Errorf("listen on %s: %w", addrPort(s.Local, s.LocalPort), err)
	}
	return nil
}

// bindInet binds with SO_REUSEADDR whatever the program chose: connections of the
// time before may still be in TIME_WAIT on the port.
func bindInet(fd int, s *blob.InetSocket) error {
	reuse, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR)
	if err != nil {
		return fmt.Errorf("SO_REUSEADDR: %w", err)
	}
	if s.Type == unix.SOCK_STREAM && reuse == 0 {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return fmt.Errorf("SO_REUSEADDR: %w", err)
		}
		defer unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 0) //nolint:errcheck // it was set the same way
	}
	sa, err := sockaddr(s.Local, s.LocalPort, s.Scope)
	if err != nil {
		return err
	}
	if err := unix.Bind(fd, sa); err != nil {
		return fmt.Errorf("bind to %s: %w", addrPort(s.Local, s.LocalPort), err)
	}
	return nil
}

// openPrepared hands out what Prepare finished.
func openPrepared(_ context.Context, _ *Restorer, rec *record) (int, error) {
	if rec.fd < 0 {
		return -1, corrupt("nothing makes this socket")
	}
	return rec.fd, nil
}
