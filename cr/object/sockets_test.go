package object

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/cr/sys"

	"golang.org/x/sys/unix"
)

func makeUnixPairs(string) ([]int, error) {
	a, e1 := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
	_, e2 := unix.Write(a[0], bytes.Repeat([]byte("0123456789"), 15_000))
	_, e3 := unix.Write(a[1], []byte("back"))
	b, e4 := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	c, e5 := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET, 0)
	var e6 error
	for i := range 5 {
		for _, fd := range []int{b[0], c[0]} {
			_, err := unix.Write(fd, bytes.Repeat([]byte{byte('a' + i)}, i*1000))
			e6 = errors.Join(e6, err)
		}
	}
	d, e7 := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	_, e8 := unix.Write(d[1], []byte("last words"))
	e9 := errors.Join(unix.Close(d[1]), unix.Shutdown(c[1], unix.SHUT_WR),
		unix.SetsockoptInt(a[0], unix.SOL_SOCKET, unix.SO_PASSCRED, 1),
		unix.SetsockoptInt(a[1], unix.SOL_SOCKET, unix.SO_SNDBUF, 40_000))
	return []int{a[0], a[1], b[0], b[1], c[0], c[1], d[0]}, errors.Join(e1, e2, e3, e4, e5, e6, e7, e8, e9)
}

func TestUnixPairs(t *testing.T) {
	h := start(t, "unixpairs")
	f := h.restore(t)
	fd := func(i int) int { return int(f[i].Fd()) }
	got, err := readAll(fd(1), 150_000)
	ok(t, err)
	if !bytes.Equal(got, bytes.Repeat([]byte("0123456789"), 15_000)) {
		t.Error("stream changed")
	}
	b := make([]byte, 10_000)
	if n, err := unix.Read(fd(0), b); err != nil || string(b[:n]) != "back" {
		t.Errorf("%q %v", b[:n], err)
	}
	for i := range 5 {
		for _, s := range []int{3, 5} {
			n, err := unix.Read(fd(s), b)
			if err != nil || !bytes.Equal(b[:n], bytes.Repeat([]byte{byte('a' + i)}, i*1000)) {
				t.Errorf("socket %d message %d: %d bytes, %v", s, i, n, err)
			}
		}
	}
	if n, err := unix.Read(fd(6), b); err != nil || string(b[:n]) != "last words" {
		t.Errorf("%q %v", b[:n], err)
	}
	if n, err := unix.Read(fd(6), b); err != nil || n != 0 {
		t.Errorf("no end: %d %v", n, err)
	}
	if n, err := unix.Read(fd(4), b); err != nil || n != 0 {
		t.Errorf("peer's shutdown is lost: %d %v", n, err)
	}
	for _, x := range []struct{ socket, name, want int }{
		{0, unix.SO_PASSCRED, 1}, {1, unix.SO_PASSCRED, 0}, {1, unix.SO_SNDBUF, 80_000}, {1, soBufLock, 1}, {0, soBufLock, 0},
	} {
		if v, err := unix.GetsockoptInt(fd(x.socket), unix.SOL_SOCKET, x.name); err != nil || v != x.want {
			t.Errorf("socket %d option %d: %d %v", x.socket, x.name, v, err)
		}
	}
	// The originals still have everything.
	fdo, err := (&Desc{HostPID: h.pid, FD: h.fds[3]}).get()
	ok(t, err)
	defer unix.Close(fdo)
	for i := range 5 {
		n, err := unix.Read(fdo, b)
		if err != nil || n != i*1000 {
			t.Errorf("original message %d: %d bytes, %v", i, n, err)
		}
	}
}

func makeUnixNames(dir string) ([]int, error) {
	socket := func(kind int) int {
		fd, err := unix.Socket(unix.AF_UNIX, kind, 0)
		if err != nil {
			panic(err)
		}
		return fd
	}
	path := []byte(filepath.Join(dir, "listener"))
	abstract := []byte("\x00stasis\x00" + dir)
	l, la := socket(unix.SOCK_STREAM), socket(unix.SOCK_SEQPACKET)
	err := errors.Join(sys.BindUnix(l, path), unix.Listen(l, 7), unix.Chmod(string(path), 0o660),
		sys.BindUnix(la, abstract), unix.Listen(la, 3))
	c, ca := socket(unix.SOCK_STREAM), socket(unix.SOCK_SEQPACKET)
	err = errors.Join(err, sys.ConnectUnix(c, path), sys.ConnectUnix(ca, abstract))
	s, _, e1 := unix.Accept(l)
	sa, _, e2 := unix.Accept(la)
	_, e3 := unix.Write(c, []byte("to server"))
	w := socket(unix.SOCK_STREAM) // waits to be accepted
	err = errors.Join(err, e1, e2, e3, sys.ConnectUnix(w, path))

	err = errors.Join(err, unix.Chdir(dir))
	d, e, x := socket(unix.SOCK_DGRAM), socket(unix.SOCK_DGRAM), socket(unix.SOCK_DGRAM)
	err = errors.Join(err, sys.BindUnix(d, []byte("relative")), sys.BindUnix(e, []byte(filepath.Join(dir, "sender"))),
		sys.ConnectUnix(e, []byte("relative")), sys.BindUnix(x, []byte("unlinked")))
	_, e4 := unix.Write(e, []byte("datagram"))
	err = errors.Join(err, e4, unix.Unlink("unlinked"))
	return []int{l, la, c, ca, s, sa, w, d, e, x}, err
}

func name(t *testing.T, f *os.File) string {
	t.Helper()
	sa, err := unix.Getsockname(int(f.Fd()))
	ok(t, err)
	return sa.(*unix.SockaddrUnix).Name
}

func TestUnixNames(t *testing.T) {
	h := start(t, "unixnames")
	img := h.capture(t)
	// The helper must be gone, or its abstract names are taken.
	h.stop(t)
	r := img.restorer(t)
	var f []*os.File
	for i := range h.fds {
		file, err := r.Open(t.Context(), img.file(t, h, i).Id)
		ok(t, err)
		f = append(f, file)
	}
	ok(t, r.Arm(t.Context(), nil))
	path := filepath.Join(h.dir, "listener")
	if name(t, f[0]) != path || name(t, f[4]) != path || name(t, f[7]) != "relative" || name(t, f[9]) != "unlinked" {
		t.Error(name(t, f[0]), name(t, f[4]), name(t, f[7]), name(t, f[9]))
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode() != os.ModeSocket|0o660 {
		t.Error(st, err)
	}
	if _, err := os.Stat(filepath.Join(h.dir, "unlinked")); !errors.Is(err, os.ErrNotExist) {
		t.Error("a deleted socket file is back", err)
	}
	b := make([]byte, 100)
	if n, err := unix.Read(int(f[4].Fd()), b); err != nil || string(b[:n]) != "to server" {
		t.Errorf("%q %v", b[:n], err)
	}
	_, err = unix.Write(int(f[3].Fd()), []byte("packet"))
	ok(t, err)
	if n, err := unix.Read(int(f[5].Fd()), b); err != nil || string(b[:n]) != "packet" {
		t.Errorf("%q %v", b[:n], err)
	}
	n, _, _, from, err := sys.RecvUnix(int(f[7].Fd()), b, nil, 0)
	if err != nil || string(b[:n]) != "datagram" || string(sunPath(from)) != filepath.Join(h.dir, "sender") {
		t.Errorf("%q from %q %v", b[:n], from, err)
	}
	_, err = unix.Write(int(f[8].Fd()), []byte("more"))
	ok(t, err)
	// The listener takes the connection that waited, and new ones.
	got, _, err := unix.Accept(int(f[0].Fd()))
	ok(t, err)
	defer unix.Close(got)
	_, err = unix.Write(int(f[6].Fd()), []byte("hello"))
	ok(t, err)
	if n, err := unix.Read(got, b); err != nil || string(b[:n]) != "hello" {
		t.Errorf("%q %v", b[:n], err)
	}
	if v, err := dumpUnix(); err != nil || v[uint32(inodeOf(t, f[0]))].backlog != 7 {
		t.Error("backlog", err)
	}
}

func inodeOf(t *testing.T, f *os.File) uint64 {
	t.Helper()
	var st unix.Stat_t
	ok(t, unix.Fstat(int(f.Fd()), &st))
	return st.Ino
}

func makeRights(string) ([]int, error) {
	p, e1 := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	e2 := unix.Sendmsg(p[0], []byte("x"), unix.UnixRights(0), nil, 0)
	return []int{p[1], p[0]}, errors.Join(e1, e2)
}

func makeOutsider(string) ([]int, error) {
	p, e1 := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	// A child keeps the other end: in a container's eyes, somebody outside.
	attr := &syscall.ProcAttr{Files: []uintptr{uintptr(p[1])}, Sys: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}}
	_, e2 := syscall.ForkExec("/bin/sleep", []string{"sleep", "1000"}, attr)
	return []int{p[0]}, errors.Join(e1, e2, unix.Close(p[1]))
}

func makeInets(string) (_ []int, err error) {
	socket := func(family, kind, proto int) int {
		fd, e := unix.Socket(family, kind, proto)
		err = errors.Join(err, e)
		return fd
	}
	v4, v6 := &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}, &unix.SockaddrInet6{}
	l, l6 := socket(unix.AF_INET, unix.SOCK_STREAM, 0), socket(unix.AF_INET6, unix.SOCK_STREAM, unix.IPPROTO_MPTCP)
	n, u := socket(unix.AF_INET, unix.SOCK_STREAM, 0), socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	u2 := socket(unix.AF_INET6, unix.SOCK_DGRAM, 0)
	err = errors.Join(err,
		unix.SetsockoptInt(l, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1),
		unix.SetsockoptInt(l, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1),
		unix.SetsockoptInt(l, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 77),
		unix.SetsockoptInt(l, unix.SOL_SOCKET, unix.SO_RCVBUF, 50_000),
		unix.SetsockoptLinger(l, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1, Linger: 5}),
		unix.Bind(l, v4), unix.Listen(l, 42), unix.Fchown(l, 77, 88),
		unix.SetsockoptInt(l6, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1), unix.Bind(l6, v6), unix.Listen(l6, 5),
		unix.Bind(u, v4), unix.SetsockoptInt(u, unix.SOL_SOCKET, unix.SO_BROADCAST, 1))
	to, e := unix.Getsockname(u)
	v4.Port = to.(*unix.SockaddrInet4).Port
	mapped := &unix.SockaddrInet6{Addr: [16]byte{10: 0xff, 11: 0xff, 12: 127, 15: 1}, Port: v4.Port}
	return []int{l, l6, n, u, u2}, errors.Join(err, e, unix.Connect(u2, mapped))
}

func TestInetSockets(t *testing.T) {
	h := start(t, "inet")
	img := h.capture(t)
	was := h.stop(t) // its ports are needed
	r := img.restorer(t)
	for i := range h.fds {
		file, err := r.Open(t.Context(), img.file(t, h, i).Id)
		ok(t, err)
		if now := describe(int(file.Fd())); was[i] != now {
			t.Errorf("socket %d was\n%s\nand is\n%s", i, was[i], now)
		}
	}
}

// describe says all that can be asked of a socket.
func describe(fd int) string {
	var b strings.Builder
	local, e1 := unix.Getsockname(fd)
	remote, e2 := unix.Getpeername(fd)
	fmt.Fprintf(&b, "%+v %v %+v %v\n", local, e1, remote, e2)
	domain, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	proto, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	for _, o := range append(commonOptions(), inetOptions(domain, proto)...) {
		v, err := sys.Getsockopt(fd, o.level, o.name)
		fmt.Fprintf(&b, "%d/%d=%x %v ", o.level, o.name, v, err)
	}
	for _, name := range []int{unix.SO_TYPE, unix.SO_ACCEPTCONN, soBufLock, unix.SO_RCVBUF} {
		v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, name)
		fmt.Fprintf(&b, "%d=%d %v ", name, v, err)
	}
	if info, err := sys.Getsockopt(fd, unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
		fmt.Fprintf(&b, "state %d backlog %d", info[0], info[28])
	}
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	fmt.Fprintf(&b, " %d %d %v", st.Uid, st.Gid, err)
	return b.String()
}

func makeEstablished(string) ([]int, error) {
	l, e1 := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	e2 := errors.Join(unix.Bind(l, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(l, 1))
	sa, e3 := unix.Getsockname(l)
	c, e4 := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	return []int{c, l}, errors.Join(e1, e2, e3, e4, unix.Connect(c, sa))
}

// TestRefusals: what can't be saved is named, with a reason.
func TestRefusals(t *testing.T) {
	for name, want := range map[string]string{
		"established": "established TCP connection with 127.0.0.1:",
		"rights":      "SCM_RIGHTS",
		"outsider":    "outside of the container",
		"locks":       "--file-locks",
		"inotify":     "inotify",
		"netlink":     "netlink",
		"pidfd":       "pidfd",
		"packet":      "packet",
		"raw":         "type 3, protocol 1",
		"ptmx":        "terminal /dev/pts/ptmx",
		"namespace":   "namespace net:[",
		"lease":       "lease",
		"fifoalone":   "5 bytes wait in FIFO",
		"packetpipe":  "O_DIRECT",
		"hugememfd":   "huge pages",
		"device":      "device /dev/kmsg (1:11)",
		"oneway":      "without a name",
		"hidden":      "was deleted",
		"threadtable": "descriptor table of its own",
	} {
		t.Run(name, func(t *testing.T) {
			h := start(t, name)
			err := h.refusal(t, func(e *Env) { e.FileLocks = false })
			if !errors.Is(err, errs.ErrUnsupported) || !strings.Contains(err.Error(), want) ||
				!strings.Contains(err.Error(), h.where()) {
				t.Error(err)
			}
			survey := h.refusal(t, func(e *Env) { e.FileLocks, e.Survey = false, true })
			if survey.Error() != err.Error() {
				t.Errorf("surveyed: %v\ncaptured: %v", survey, err)
			}
		})
	}
}

func makeUDP(string) ([]int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	return []int{fd}, err
}
