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
	case kind == unix.SOCK_STREAM && (protocol == unix.IPPROTO_TCP || protocol == unix.IPPROTO_MPTCP):
		err = c.stream(d, fd, s)
	case kind == unix.SOCK_DGRAM && protocol == unix.IPPROTO_UDP:
		if remote, err := unix.Getpeername(fd); err == nil {
			s.Remote, s.RemotePort, s.RemoteScope = address(remote)
		}
	default:
		err = unsupported("an %s socket of type %d, protocol %d", family(d.domain), kind, protocol)
	}
	if err != nil {
		return nil, err
	}
	s.Options, err = readOptions(fd, append(commonOptions(), inetOptions(d.domain, protocol)...))
	return s, err
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
		return nil
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
func prepareInetSockets(_ context.Context, _ *Restorer, recs []*record) error {
	for _, rec := range recs {
		if err := makeInetSocket(rec, rec.body.(*blob.InetSocket)); err != nil {
			return rec.wrap(err)
		}
	}
	return nil
}

func makeInetSocket(rec *record, s *blob.InetSocket) error {
	fd, err := unix.Socket(int(s.Family), int(s.Type)|unix.SOCK_CLOEXEC, int(s.Protocol))
	if err != nil {
		return fmt.Errorf("socket %d %d %d: %w", s.Family, s.Type, s.Protocol, err)
	}
	rec.fd = fd
	if s.Family != unix.AF_INET && s.Family != unix.AF_INET6 {
		return corrupt("socket family %d", s.Family)
	}
	if err := unix.Fchown(fd, int(s.Uid), int(s.Gid)); err != nil { // sk_uid follows: net/socket.c, sockfs_setattr
		return fmt.Errorf("chown: %w", err)
	}
	if err := setOptions(fd, s.Options); err != nil {
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
		defer unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 0)
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
