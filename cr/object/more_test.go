package object

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/cr/sys"

	"golang.org/x/sys/unix"
)

// makeExternals does what nginx does with /dev/stdout.
func makeExternals(string) (_ []int, err error) {
	own := open(&err, "/proc/self/fd/1", unix.O_WRONLY|unix.O_APPEND)
	dup, e := unix.Dup(1)
	return []int{1, dup, own, 0}, errors.Join(err, e)
}

func TestExternals(t *testing.T) {
	h := start(t, "externals")
	img := h.capture(t)
	for n, want := range []*blob.External{{Index: 1}, {Index: 1}, {Index: 1, Reopen: true}, {Index: 0}} {
		f := img.file(t, h, n)
		if f.Kind != "external" {
			t.Fatalf("descriptor %d is a %s", n, f.Kind)
		}
		got := &blob.External{}
		unmarshal(t, f, got)
		if got.Index != want.Index || got.Reopen != want.Reopen {
			t.Errorf("descriptor %d: %v", n, got)
		}
	}
	r, w, err := os.Pipe()
	ok(t, err)
	defer r.Close()
	defer w.Close()
	restorer, err := NewRestorer(RestoreEnv{
		InitPID: os.Getpid(), Stdio: [3]*os.File{r, w, w}, Files: img.files, Enter: onThread,
	})
	ok(t, err)
	defer restorer.Close()
	shared, err := restorer.Open(t.Context(), img.file(t, h, 0).Id)
	ok(t, err)
	own, err := restorer.Open(t.Context(), img.file(t, h, 2).Id)
	ok(t, err)
	if kcmpFile(t, shared, w) != 0 || kcmpFile(t, own, w) == 0 {
		t.Error("descriptions are shared otherwise than they were")
	}
	_, err = unix.Write(int(own.Fd()), []byte("log"))
	ok(t, err)
	b := make([]byte, 10)
	if n, err := r.Read(b); err != nil || string(b[:n]) != "log" {
		t.Errorf("%q %v", b[:n], err)
	}
}

// makeEnded leaves a TCP socket whose peer reset it, one that never had a peer,
// and the descriptor of a socket's file.
func makeEnded(dir string) ([]int, error) {
	l, e1 := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	e2 := errors.Join(unix.Bind(l, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(l, 1))
	sa, e3 := unix.Getsockname(l)
	c, e4 := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	e5 := unix.Connect(c, sa)
	s, _, e6 := unix.Accept(l)
	e7 := unix.SetsockoptLinger(s, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	e8 := unix.Close(s)
	p := []unix.PollFd{{Fd: int32(c), Events: unix.POLLRDHUP}}
	_, e9 := unix.Poll(p, -1)
	u, e10 := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	name := filepath.Join(dir, "socket")
	e11 := sys.BindUnix(u, []byte(name))
	o, e12 := unix.Open(name, unix.O_PATH, 0)
	return []int{c, o, u}, errors.Join(e1, e2, e3, e4, e5, e6, e7, e8, e9, e10, e11, e12)
}

func TestEnded(t *testing.T) {
	h := start(t, "ended")
	img := h.capture(t)
	h.stop(t)
	r := img.restorer(t)
	f, err := r.Open(t.Context(), img.file(t, h, 0).Id)
	ok(t, err)
	if n, err := unix.Read(int(f.Fd()), make([]byte, 1)); n != 0 || err != nil {
		t.Errorf("read %d %v", n, err)
	}
	if _, err := unix.Write(int(f.Fd()), make([]byte, 1)); !errors.Is(err, unix.EPIPE) {
		t.Errorf("write %v", err)
	}
}

// TestUndo: what Prepare made in the file system goes again if the restore does
// not come to its end.
func TestUndo(t *testing.T) {
	h := start(t, "ended")
	img := h.capture(t)
	h.stop(t)
	name := filepath.Join(h.dir, "socket")
	ok(t, os.Remove(name))
	for i := range img.files { // the O_PATH descriptor has nothing to be opened by
		if img.files[i].Kind == "path" && strings.HasSuffix(img.files[i].Name, "/socket") {
			img.files[i].Body = nil
			img.files[i].Kind = "eventfd"
		}
	}
	for _, arm := range []bool{false, true} {
		r, err := NewRestorer(RestoreEnv{InitPID: os.Getpid(), Files: img.files, Enter: onThread})
		ok(t, err)
		ok(t, r.Prepare(t.Context()))
		if _, err := os.Lstat(name); err != nil {
			t.Error(err)
		}
		if arm {
			ok(t, r.Arm(t.Context(), nil))
		}
		ok(t, r.Close())
		if _, err := os.Lstat(name); (err == nil) != arm {
			t.Errorf("armed %v: %v", arm, err)
		}
	}
}

// makePeers is a connection of user 1234 to a listener of user 4321, and a pair
// of a third.
func makePeers(dir string) ([]int, error) {
	name := []byte(filepath.Join(dir, "l"))
	l, e1 := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	e2 := errors.Join(os.Chmod(dir, 0o777), os.Chmod(filepath.Dir(dir), 0o755),
		sys.BindUnix(l, name), os.Chmod(string(name), 0o777))
	e3 := sys.AsUser(4321, 43, func() error { return unix.Listen(l, 1) })
	c, e4 := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	e5 := sys.AsUser(1234, 12, func() error { return sys.ConnectUnix(c, name) })
	s, _, e6 := unix.Accept(l)
	var p [2]int
	e7 := sys.AsUser(77, 78, func() (err error) {
		p, err = unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET, 0)
		return err
	})
	return []int{l, c, s, p[0], p[1]}, errors.Join(e1, e2, e3, e4, e5, e6, e7)
}

func TestPeerCredentials(t *testing.T) {
	h := start(t, "peers")
	img := h.capture(t)
	h.stop(t)
	r := img.restorer(t)
	for i, want := range []unix.Ucred{
		{Uid: 4321, Gid: 43}, {Uid: 4321, Gid: 43}, {Uid: 1234, Gid: 12}, {Uid: 77, Gid: 78}, {Uid: 77, Gid: 78},
	} {
		f, err := r.Open(t.Context(), img.file(t, h, i).Id)
		ok(t, err)
		got, err := unix.GetsockoptUcred(int(f.Fd()), unix.SOL_SOCKET, unix.SO_PEERCRED)
		ok(t, err)
		if got.Uid != want.Uid || got.Gid != want.Gid {
			t.Errorf("socket %d: %+v", i, got)
		}
	}
}

func makeOwned(string) ([]int, error) {
	p, e1 := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	e2 := sys.SetOwner(p[0], sys.FOwner{Type: 1, PID: int32(os.Getpid())})
	_, e3 := unix.FcntlInt(uintptr(p[0]), unix.F_SETSIG, int(unix.SIGWINCH))
	_, e4 := unix.FcntlInt(uintptr(p[0]), unix.F_SETFL, unix.O_ASYNC|unix.O_NONBLOCK)
	return []int{p[0]}, errors.Join(e1, e2, e3, e4)
}

func TestOwner(t *testing.T) {
	h := start(t, "owned")
	f := h.restore(t)
	o, err := sys.GetOwner(int(f[0].Fd()))
	ok(t, err)
	signal, err := unix.FcntlInt(f[0].Fd(), unix.F_GETSIG, 0)
	ok(t, err)
	if int(o.PID) != h.pid || o.Type != 1 || signal != int(unix.SIGWINCH) {
		t.Errorf("owner %+v, signal %d", o, signal)
	}
}

// TestForeignNet: a socket that was brought along from another network namespace.
func TestForeignNet(t *testing.T) {
	h := start(t, "udp")
	other := start(t, "udp", func(c *exec.Cmd) { c.SysProcAttr.Cloneflags = unix.CLONE_NEWNET })
	err := other.refusal(t, func(e *Env) { e.InitPID = h.pid })
	if !errors.Is(err, errs.ErrUnsupported) || !strings.Contains(err.Error(), "network namespace") {
		t.Error(err)
	}
}

// TestLeaks: neither a capture nor a restore leaves descriptors behind.
func TestLeaks(t *testing.T) {
	needRoot(t)
	for _, name := range []string{"pathfile", "pipe", "memfd", "ghost", "fifo", "unixpairs", "epoll"} {
		h := start(t, name)
		before, err := descriptors(os.Getpid())
		ok(t, err)
		img := h.capture(t)
		r, err := NewRestorer(RestoreEnv{
			InitPID: os.Getpid(),
			Stdio:   [3]*os.File{os.Stdin, os.Stdout, os.Stderr}, Files: img.files,
			ReadContents: img.contents.read, Enter: onThread,
		})
		ok(t, err)
		for i := range h.fds {
			_, err := r.Open(t.Context(), img.file(t, h, i).Id)
			ok(t, err)
		}
		ok(t, r.Close())
		after, err := descriptors(os.Getpid())
		ok(t, err)
		// Only what is new is a leak: what an earlier test dropped may be closed by
		// its finalizer at any time.
		after = slices.DeleteFunc(after, func(fd int) bool { return slices.Contains(before, fd) })
		if len(after) > 0 {
			t.Errorf("%s: descriptors %v are left", name, after)
		}
	}
}

func TestBoundIn(t *testing.T) {
	for _, x := range []struct {
		name, file, dir string
		ok              bool
	}{
		{"/run/s", "/run/s", "", true},
		{"s", "/run/s", "/run", true},
		{"s", "/s", "/", true},
		{"./a/s", "/run/a/s", "/run", true},
		{"/run/s", "/jail/run/s", "/jail", true},
		{"/var/run/s", "/run/s", "", false},
		{"../s", "/run/s", "", false},
	} {
		if dir, ok := boundIn(x.name, x.file); dir != x.dir || ok != x.ok {
			t.Errorf("%s bound to %s: %q %v", x.name, x.file, dir, ok)
		}
	}
}

// FuzzDiag: the kernel's answers are trusted, the lengths in them are checked.
func FuzzDiag(f *testing.F) {
	f.Add([]byte("\x20\x00\x00\x00\x14\x00\x02\x00\x00\x00\x00\x00\x00\x00\x00\x00" +
		"\x01\x01\x0a\x00\x07\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Fuzz(func(_ *testing.T, b []byte) {
		_, err := parseDump(b, map[uint32]*unixDiag{})
		_ = err
	})
}

func BenchmarkTable(b *testing.B) {
	h := start(b, "many")
	for b.Loop() {
		c := NewCapture(h.env(&contents{}))
		if _, _, err := c.Table(b.Context(), h.ref()); err != nil {
			b.Fatal(err)
		}
		c.Close()
	}
}

// makeTerminal has a terminal as stderr, opens it anew, and another one.
func makeTerminal(string) (_ []int, err error) {
	own := open(&err, "/proc/self/fd/2", unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK)
	return []int{2, own}, err
}

// pty answers the slave of a new pseudo-terminal.
func pty(t *testing.T) *os.File {
	t.Helper()
	master, err := os.OpenFile("/dev/pts/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	ok(t, err)
	t.Cleanup(func() { master.Close() })
	ok(t, unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	ok(t, err)
	slave, err := os.OpenFile("/dev/pts/"+itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	ok(t, err)
	t.Cleanup(func() { slave.Close() })
	return slave
}

func TestTerminal(t *testing.T) {
	needRoot(t)
	h := start(t, "terminal", func(c *exec.Cmd) { c.Stderr = pty(t) })
	err := h.refusal(t, func(e *Env) { e.Externals = e.Externals[:2] })
	if !strings.Contains(err.Error(), "terminal /dev/pts/") {
		t.Error(err)
	}
	env := h.env(&contents{})
	env.Terminal = true
	c := NewCapture(env)
	defer c.Close()
	_, _, err = c.Table(t.Context(), h.ref())
	ok(t, err)
	files, tables, err := c.Finish(t.Context())
	ok(t, err)
	img := &image{files: files, table: tables[0]}
	now := pty(t)
	r, err := NewRestorer(RestoreEnv{
		InitPID: os.Getpid(), Stdio: [3]*os.File{now, now, now}, Files: files, Enter: onThread,
	})
	ok(t, err)
	defer r.Close()
	shared, err := r.Open(t.Context(), img.file(t, h, 0).Id)
	ok(t, err)
	own, err := r.Open(t.Context(), img.file(t, h, 1).Id)
	ok(t, err)
	if kcmpFile(t, shared, now) != 0 || kcmpFile(t, own, now) == 0 || inodeOf(t, own) != inodeOf(t, now) {
		t.Error("descriptions are shared otherwise than they were")
	}
}

func makeChroot(dir string) ([]int, error) {
	jail := filepath.Join(dir, "jail")
	return nil, errors.Join(os.Mkdir(jail, 0o755), unix.Chroot(jail), unix.Chdir("/"))
}

func TestRoot(t *testing.T) {
	h := start(t, "chroot")
	var img image
	env := h.env(&img.contents)
	env.InitPID = os.Getpid()
	c := NewCapture(env)
	defer c.Close()
	root, err := c.Path(t.Context(), h.ref(), "root")
	ok(t, err)
	cwd, err := c.Path(t.Context(), h.ref(), "cwd")
	ok(t, err)
	if root == 0 || cwd == 0 {
		t.Fatalf("root %d, cwd %d", root, cwd)
	}
	img.files, _, err = c.Finish(t.Context())
	ok(t, err)
	f, err := img.restorer(t).Open(t.Context(), root)
	ok(t, err)
	st, err := os.Stat(filepath.Join(h.dir, "jail"))
	ok(t, err)
	if st.Sys().(*syscall.Stat_t).Ino != inodeOf(t, f) {
		t.Error("root is another directory")
	}
}
