package object

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/cr/sys"

	"golang.org/x/sys/unix"
)

func kcmpSelf(a, b int) (int, error) {
	return sys.Kcmp(os.Getpid(), os.Getpid(), sys.KcmpFile, uint64(a), uint64(b))
}

func helperCases() map[string]made {
	cases := map[string]made{
		"pathfile":    makePathFiles,
		"eventfd":     makeEventFDs,
		"pipe":        makePipes,
		"many":        makeMany,
		"signalfd":    makeSignalFDs,
		"timerfd":     makeTimerFDs,
		"epoll":       makeEPolls,
		"epolllost":   makeEPollLost,
		"udp":         makeUDP,
		"terminal":    makeTerminal,
		"chroot":      makeChroot,
		"externals":   makeExternals,
		"ended":       makeEnded,
		"peers":       makePeers,
		"owned":       makeOwned,
		"memfd":       makeMemFDs,
		"ghost":       makeGhosts,
		"mapping":     makeMappings,
		"fifo":        makeFIFOs,
		"unixpairs":   makeUnixPairs,
		"unixnames":   makeUnixNames,
		"rights":      makeRights,
		"outsider":    makeOutsider,
		"inet":        makeInets,
		"established": makeEstablished,
		"locks":       makeLocks,
	}
	maps.Copy(cases, refusedCases())
	return cases
}

// TestKinds: tags are what images are read by.
func TestKinds(t *testing.T) {
	seen := map[string]bool{}
	for _, k := range Kinds() {
		if k.Tag == "" || seen[k.Tag] || k.Rev == 0 {
			t.Errorf("tag %q revision %d", k.Tag, k.Rev)
		}
		seen[k.Tag] = true
		if k.New == nil || k.Match == nil || k.Capture == nil || k.Open == nil {
			t.Errorf("%s is incomplete", k.Tag)
		}
	}
}

func open(err *error, name string, flags int) int {
	fd, e := unix.Open(name, flags, 0o640)
	*err = errors.Join(*err, e)
	return fd
}

func makePathFiles(dir string) (_ []int, err error) {
	name := filepath.Join(dir, "file")
	a := open(&err, name, unix.O_RDWR|unix.O_CREAT|unix.O_APPEND|unix.O_CLOEXEC)
	_, e := unix.Write(a, []byte("0123456789"))
	b := open(&err, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK)
	_, e2 := unix.Seek(b, 7, unix.SEEK_SET)
	c := open(&err, dir, unix.O_RDONLY|unix.O_DIRECTORY)
	d := open(&err, name, unix.O_PATH)
	n := open(&err, "/dev/null", unix.O_WRONLY)
	dup, e3 := unix.Dup(b)
	e4 := unix.Symlink("nowhere", filepath.Join(dir, "link"))
	l := open(&err, filepath.Join(dir, "link"), unix.O_PATH|unix.O_NOFOLLOW)
	p := open(&err, "/proc/self/status", unix.O_RDONLY)
	return []int{a, b, c, d, n, dup, l, p}, errors.Join(err, e, e2, e3, e4)
}

func TestPathFile(t *testing.T) {
	h := start(t, "pathfile")
	f := h.restore(t)
	if kcmpFile(t, f[1], f[5]) != 0 || kcmpFile(t, f[1], f[0]) == 0 {
		t.Error("descriptions are shared otherwise than they were")
	}
	b := make([]byte, 10)
	n, err := f[1].Read(b)
	ok(t, err)
	if string(b[:n]) != "789" {
		t.Errorf("read %q", b[:n])
	}
}

func TestPathFileGone(t *testing.T) {
	h := start(t, "pathfile")
	img := h.capture(t)
	ok(t, os.Remove(filepath.Join(h.dir, "file")))
	_, err := img.restorer(t).Open(t.Context(), img.file(t, h, 0).Id)
	if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), filepath.Join(h.dir, "file")) {
		t.Error(err)
	}
}

func TestPathFileReplaced(t *testing.T) {
	h := start(t, "pathfile")
	img := h.capture(t)
	ok(t, os.Remove(filepath.Join(h.dir, "file")))
	ok(t, unix.Mkfifo(filepath.Join(h.dir, "file"), 0o600)) // opening it would block
	_, err := img.restorer(t).Open(t.Context(), img.file(t, h, 0).Id)
	if !errors.Is(err, errs.ErrHost) {
		t.Error(err)
	}
}

func makeEventFDs(string) ([]int, error) {
	a, err := unix.Eventfd(0, 0)
	_, e := unix.Write(a, []byte{0x10, 0x32, 0x54, 0x76, 0x98, 0xba, 0xdc, 0x0e})
	b, e2 := unix.Eventfd(5, unix.EFD_SEMAPHORE|unix.EFD_NONBLOCK)
	return []int{a, b}, errors.Join(err, e, e2)
}

func TestEventFD(t *testing.T) {
	f := start(t, "eventfd").restore(t)
	b := make([]byte, 8)
	_, err := unix.Read(int(f[0].Fd()), b)
	ok(t, err)
	if !slices.Equal(b, []byte{0x10, 0x32, 0x54, 0x76, 0x98, 0xba, 0xdc, 0x0e}) {
		t.Errorf("count %x", b)
	}
	for range 5 {
		_, err := unix.Read(int(f[1].Fd()), b)
		ok(t, err)
		if b[0] != 1 {
			t.Errorf("semaphore gave %d", b[0])
		}
	}
	if _, err := unix.Read(int(f[1].Fd()), b); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("empty semaphore: %v", err)
	}
}

func makePipes(string) ([]int, error) {
	var p, q, w, e [2]int
	err := errors.Join(unix.Pipe(p[:]), unix.Pipe2(q[:], unix.O_NONBLOCK),
		unix.Pipe2(w[:], unix.O_DIRECT), unix.Pipe(e[:]))
	_, e1 := unix.FcntlInt(uintptr(p[0]), unix.F_SETPIPE_SZ, 1<<20)
	var e2 error
	for i := range 200 { // many writes: many slots
		_, err := unix.Write(p[1], []byte(strings.Repeat(string(rune('a'+i%26)), 500)))
		e2 = errors.Join(e2, err)
	}
	_, e3 := unix.Write(q[1], []byte("rest"))
	again, e4 := unix.Open("/proc/self/fd/"+itoa(p[1]), unix.O_WRONLY, 0)
	return []int{p[0], p[1], q[0], w[0], w[1], again}, errors.Join(err, e1, e2, e3, e4, unix.Close(q[1]), unix.Close(e[0]))
}

func TestPipe(t *testing.T) {
	h := start(t, "pipe")
	f := h.restore(t)
	var want strings.Builder
	for i := range 200 {
		want.WriteString(strings.Repeat(string(rune('a'+i%26)), 500))
	}
	size, err := unix.FcntlInt(f[0].Fd(), unix.F_GETPIPE_SZ, 0)
	ok(t, err)
	if size != 1<<20 {
		t.Errorf("size %d", size)
	}
	for range 2 { // once in the copy, once more in the original: capture took nothing
		got, err := readAll(int(f[0].Fd()), 100_000)
		ok(t, err)
		if string(got) != want.String() {
			t.Error("the data changed")
		}
		fd, err := (&Desc{HostPID: h.pid, FD: h.fds[0]}).get()
		ok(t, err)
		f[0] = os.NewFile(uintptr(fd), "original")
	}
	_, err = unix.Write(int(f[5].Fd()), []byte("x"))
	ok(t, err)
	b := make([]byte, 10)
	n, err := unix.Read(int(f[2].Fd()), b)
	if err != nil || string(b[:n]) != "rest" {
		t.Errorf("%q %v", b[:n], err)
	}
}

func makeMany(dir string) (fds []int, err error) {
	for range 2000 {
		fds = append(fds, open(&err, "/dev/null", unix.O_RDONLY))
	}
	for i := range 2000 {
		fd, e := unix.Dup(fds[i])
		fds, err = append(fds, fd), errors.Join(err, e)
	}
	return fds, err
}

// TestMany: descriptions that look alike are told apart, and fast.
func TestMany(t *testing.T) {
	h := start(t, "many")
	img := h.capture(t)
	seen := map[uint32]bool{}
	for i := range 2000 {
		id := img.file(t, h, i).Id
		if seen[id] || img.file(t, h, 2000+i).Id != id {
			t.Fatalf("description %d", i)
		}
		seen[id] = true
	}
}
