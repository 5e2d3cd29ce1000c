package main

import (
	"bytes"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// pair is one socketpair with what waits in it.
type pair struct {
	what string
	kind int
	send [][]byte
	fd   [2]int
	shut bool // the second end is shut for writing
}

// unixPair has pairs of every kind with data in both directions.
func unixPair() (func() error, error) {
	all := []pair{
		{what: "stream", kind: unix.SOCK_STREAM, send: [][]byte{pattern(1000, 1), pattern(30000, 2)}},
		{what: "datagram", kind: unix.SOCK_DGRAM, send: [][]byte{pattern(5, 1), {}, pattern(9000, 2)}},
		{what: "seqpacket", kind: unix.SOCK_SEQPACKET | unix.SOCK_NONBLOCK, send: [][]byte{pattern(70, 1), pattern(3, 2)}},
		{what: "shut", kind: unix.SOCK_STREAM | unix.SOCK_CLOEXEC, send: [][]byte{pattern(12, 1)}, shut: true},
	}
	for i := range all {
		if err := all[i].make(); err != nil {
			return nil, fmt.Errorf("%s: %w", all[i].what, err)
		}
	}
	return func() error {
		for _, p := range all {
			if err := p.check(); err != nil {
				return fmt.Errorf("pair %s: %w", p.what, err)
			}
		}
		return nil
	}, nil
}

func (p *pair) make() error {
	fd, err := unix.Socketpair(unix.AF_UNIX, p.kind, 0)
	if err != nil {
		return err
	}
	p.fd = fd
	for _, b := range p.send {
		if err := first(unix.Sendmsg(fd[0], b, nil, nil, 0), unix.Sendmsg(fd[1], b, nil, nil, 0)); err != nil {
			return err
		}
	}
	if p.shut {
		return unix.Shutdown(fd[1], unix.SHUT_WR)
	}
	return unix.SetsockoptInt(fd[0], unix.SOL_SOCKET, unix.SO_PASSCRED, 0)
}

func (p *pair) check() error {
	for _, fd := range p.fd {
		if err := p.drain(fd); err != nil {
			return err
		}
	}
	b := make([]byte, 16)
	if p.shut {
		n, err := unix.Read(p.fd[0], b)
		return first(err, eq("bytes after the end", n, 0))
	}
	if _, err := unix.Write(p.fd[1], []byte("after")); err != nil {
		return err
	}
	n, err := unix.Read(p.fd[0], b)
	if err != nil {
		return err
	}
	kind, err := unix.GetsockoptInt(p.fd[0], unix.SOL_SOCKET, unix.SO_TYPE)
	return first(err, eq("what was sent afterwards", string(b[:n]), "after"), eq("type", kind, p.kind&0xf))
}

// drain reads the messages that wait at one end, each with its own bounds.
func (p *pair) drain(fd int) error {
	want := p.send
	if p.kind&0xf == unix.SOCK_STREAM {
		want = [][]byte{bytes.Join(p.send, nil)}
	}
	buf := make([]byte, 1<<17)
	for _, w := range want {
		var got []byte
		for len(got) < len(w) || len(w) == 0 {
			n, err := unix.Read(fd, buf)
			if err != nil {
				return err
			}
			got = append(got, buf[:n]...)
			if n == 0 || p.kind&0xf != unix.SOCK_STREAM {
				break
			}
		}
		if !bytes.Equal(got, w) {
			return fmt.Errorf("message: %d bytes, want %d", len(got), len(w))
		}
	}
	return nil
}

// listener is one listening socket and how to reach it.
type listener struct {
	what   string
	fd     int
	domain int
	to     unix.Sockaddr
	opts   [][3]int // level, option, value
}

func (l *listener) listen(at unix.Sockaddr, backlog int) error {
	var err error
	if l.fd, err = unix.Socket(l.domain, unix.SOCK_STREAM, 0); err != nil {
		return err
	}
	for _, o := range l.opts {
		if err := unix.SetsockoptInt(l.fd, o[0], o[1], o[2]); err != nil {
			return fmt.Errorf("option %v: %w", o, err)
		}
	}
	if err := first(unix.Bind(l.fd, at), unix.Listen(l.fd, backlog)); err != nil {
		return err
	}
	l.to, err = unix.Getsockname(l.fd)
	return err
}

// talk connects to the listener and sends a word through.
func (l *listener) talk() error {
	c, err := unix.Socket(l.domain, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	if err := unix.Connect(c, l.to); err != nil {
		return fmt.Errorf("%s: connect: %w", l.what, err)
	}
	s, _, err := unix.Accept(l.fd)
	if err != nil {
		return fmt.Errorf("%s: accept: %w", l.what, err)
	}
	if _, err := unix.Write(c, []byte("hello")); err != nil {
		return err
	}
	b := make([]byte, 9)
	n, err := unix.Read(s, b)
	return first(err, eq(l.what, string(b[:max(n, 0)]), "hello"), unix.Close(c), unix.Close(s))
}

func (l *listener) check() error {
	at, err := unix.Getsockname(l.fd)
	if err != nil {
		return err
	}
	if err := eq(l.what+": name", fmt.Sprintf("%+v", at), fmt.Sprintf("%+v", l.to)); err != nil {
		return err
	}
	for _, o := range l.opts {
		is, err := unix.GetsockoptInt(l.fd, o[0], o[1])
		want := o[2]
		if o[0] == unix.SOL_SOCKET && (o[1] == unix.SO_RCVBUF || o[1] == unix.SO_SNDBUF) {
			want *= 2 // socket(7): the kernel doubles it
		}
		if err := first(err, eq(fmt.Sprintf("%s: option %v", l.what, o), is, want)); err != nil {
			return err
		}
	}
	accepts, err := unix.GetsockoptInt(l.fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	return first(err, eq(l.what+": listens", accepts, 1), l.talk())
}

func checkListeners(all []*listener) error {
	for _, l := range all {
		if err := l.check(); err != nil {
			return err
		}
	}
	return nil
}

// unixListen has a name in the file system and one in the abstract namespace.
func unixListen() (func() error, error) {
	path := &listener{what: "path", domain: unix.AF_UNIX}
	abstract := &listener{what: "abstract", domain: unix.AF_UNIX, opts: [][3]int{{unix.SOL_SOCKET, unix.SO_PASSCRED, 1}}}
	tmp := &listener{what: "path on a tmpfs", domain: unix.AF_UNIX}
	err := first(path.listen(&unix.SockaddrUnix{Name: ctl + "socket"}, 3),
		abstract.listen(&unix.SockaddrUnix{Name: "@abstract"}, 5),
		tmp.listen(&unix.SockaddrUnix{Name: "/tmp/socket"}, 5), os.Chmod(ctl+"socket", 0o642))
	if err != nil {
		return nil, err
	}
	dgram, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if err != nil {
		return nil, err
	}
	to := &unix.SockaddrUnix{Name: ctl + "dgram"}
	if err := first(unix.Bind(dgram, to), unix.Sendto(dgram, []byte("waits"), 0, to)); err != nil {
		return nil, err
	}
	return func() error {
		st, err := os.Lstat(ctl + "socket")
		if err != nil {
			return err
		}
		b := make([]byte, 9)
		n, err := unix.Read(dgram, b)
		return first(err, eq("datagram to itself", string(b[:max(n, 0)]), "waits"),
			eq("mode of the socket's file", st.Mode().Perm(), 0o642),
			checkListeners([]*listener{path, abstract, tmp}))
	}, nil
}

// tcpListen listens on both versions, on one address and on all.
func tcpListen() (func() error, error) {
	reuse := []int{unix.SOL_SOCKET, unix.SO_REUSEADDR, 1}
	all := []*listener{
		{what: "v4", domain: unix.AF_INET, opts: [][3]int{[3]int(reuse), {unix.IPPROTO_TCP, unix.TCP_NODELAY, 1}}},
		{what: "v4 on one address", domain: unix.AF_INET, opts: [][3]int{{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1}}},
		{what: "v6", domain: unix.AF_INET6, opts: [][3]int{{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1}}},
		{what: "v6 and v4", domain: unix.AF_INET6, opts: [][3]int{
			{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0},
			{unix.SOL_SOCKET, unix.SO_REUSEPORT, 1},
			{unix.SOL_SOCKET, unix.SO_RCVBUF, 50000},
		}},
	}
	local6 := [16]byte{15: 1}
	err := first(all[0].listen(&unix.SockaddrInet4{Port: 8080}, 128),
		all[1].listen(&unix.SockaddrInet4{Port: 0, Addr: [4]byte{127, 0, 0, 1}}, 1),
		all[2].listen(&unix.SockaddrInet6{Port: 8080, Addr: local6}, 7), all[3].listen(&unix.SockaddrInet6{Port: 9090}, 9))
	if err != nil {
		return nil, err
	}
	return func() error { return checkListeners(all) }, nil
}

// udp is bound, connected, and holds a datagram.
func udp() (func() error, error) {
	v4, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	v6, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM, 0)
	if err != nil {
		return nil, err
	}
	to4 := &unix.SockaddrInet4{Port: 5353, Addr: [4]byte{127, 0, 0, 1}}
	to6 := &unix.SockaddrInet6{Port: 5354, Addr: [16]byte{15: 1}}
	client, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return nil, err
	}
	err = first(unix.SetsockoptInt(v4, unix.SOL_SOCKET, unix.SO_BROADCAST, 1), unix.Bind(v4, to4), unix.Bind(v6, to6),
		unix.Connect(client, to4))
	if err != nil {
		return nil, err
	}
	return func() error {
		broadcast, err := unix.GetsockoptInt(v4, unix.SOL_SOCKET, unix.SO_BROADCAST)
		if err := first(err, eq("SO_BROADCAST", broadcast, 1)); err != nil {
			return err
		}
		if _, err := unix.Write(client, []byte("four")); err != nil {
			return err
		}
		b := make([]byte, 9)
		n, err := unix.Read(v4, b)
		if err := first(err, eq("datagram", string(b[:max(n, 0)]), "four")); err != nil {
			return err
		}
		if err := unix.Sendto(v6, []byte("six"), 0, to6); err != nil {
			return err
		}
		n, err = unix.Read(v6, b)
		return first(err, eq("datagram over v6", string(b[:max(n, 0)]), "six"))
	}, nil
}
