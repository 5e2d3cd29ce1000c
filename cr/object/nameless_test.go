package object

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/cr/procfs"

	"golang.org/x/sys/unix"
)

func makeMemFDs(string) ([]int, error) {
	a, e1 := unix.MemfdCreate("some name", unix.MFD_ALLOW_SEALING)
	_, e2 := unix.Write(a, bytes.Repeat([]byte("abcd"), 5000))
	e3 := unix.Ftruncate(a, 1<<20)
	e4 := unix.Fchmod(a, 0o640)
	b, e5 := unix.Open("/proc/self/fd/"+itoa(a), unix.O_RDONLY, 0)
	_, e6 := unix.Mmap(a, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	_, e7 := unix.FcntlInt(uintptr(a), unix.F_ADD_SEALS, unix.F_SEAL_FUTURE_WRITE|unix.F_SEAL_GROW)
	c, e8 := unix.MemfdCreate("", 0)
	return []int{a, b, c}, errors.Join(e1, e2, e3, e4, e5, e6, e7, e8)
}

func TestMemFD(t *testing.T) {
	h := start(t, "memfd")
	f := h.restore(t)
	b := make([]byte, 1<<20)
	_, err := f[1].ReadAt(b, 0)
	ok(t, err)
	if !bytes.HasPrefix(b, []byte("abcdabcd")) || bytes.Count(b, []byte("abcd")) != 5000 {
		t.Error("contents changed")
	}
	a, err := f[0].Stat()
	ok(t, err)
	c, err := f[1].Stat()
	ok(t, err)
	if !os.SameFile(a, c) || a.Size() != 1<<20 || a.Mode().Perm() != 0o640 {
		t.Errorf("%v %v %v", os.SameFile(a, c), a.Size(), a.Mode())
	}
	for i, want := range []int{
		unix.F_SEAL_FUTURE_WRITE | unix.F_SEAL_GROW, unix.F_SEAL_FUTURE_WRITE | unix.F_SEAL_GROW, unix.F_SEAL_SEAL,
	} {
		if seals, err := unix.FcntlInt(f[i].Fd(), unix.F_GET_SEALS, 0); err != nil || seals != want {
			t.Errorf("seals %d: %#x %v", i, seals, err)
		}
	}
	link, err := os.Readlink("/proc/self/fd/" + itoa(int(f[0].Fd())))
	if err != nil || link != "/memfd:some name (deleted)" {
		t.Error(link, err)
	}
}

func makeGhosts(dir string) (_ []int, err error) {
	name := filepath.Join(dir, "ghost")
	a := open(&err, name, unix.O_RDWR|unix.O_CREAT|unix.O_APPEND)
	_, e1 := unix.Write(a, []byte("the bytes of a deleted file"))
	b := open(&err, name, unix.O_RDONLY)
	_, e2 := unix.Seek(b, 4, unix.SEEK_SET)
	e3 := unix.Fchown(a, 12, 34)
	e4 := unix.Fchmod(a, 0o4750)
	e5 := unix.Unlink(name)
	c := open(&err, dir, unix.O_TMPFILE|unix.O_RDWR)
	_, e6 := unix.Write(c, []byte("temporary"))
	d := open(&err, "/proc/self/fd/"+itoa(c), unix.O_RDONLY)
	return []int{a, b, c, d}, errors.Join(err, e1, e2, e3, e4, e5, e6)
}

func TestGhostFile(t *testing.T) {
	h := start(t, "ghost")
	f := h.restore(t)
	b := make([]byte, 100)
	n, err := f[1].Read(b)
	if err != nil || string(b[:n]) != "bytes of a deleted file" {
		t.Errorf("%q %v", b[:n], err)
	}
	var st unix.Stat_t
	ok(t, unix.Fstat(int(f[0].Fd()), &st))
	if st.Nlink != 0 || st.Uid != 12 || st.Gid != 34 || st.Mode != unix.S_IFREG|0o4750 {
		t.Errorf("%+v", st)
	}
	n, err = f[3].Read(b)
	if err != nil || string(b[:n]) != "temporary" {
		t.Errorf("%q %v", b[:n], err)
	}
	left, err := os.ReadDir(h.dir)
	if err != nil || len(left) != 0 {
		t.Error(left, err)
	}
}

func makeMappings(dir string) (_ []int, err error) {
	ghost := filepath.Join(dir, "ghost")
	a := open(&err, ghost, unix.O_RDWR|unix.O_CREAT)
	e1 := unix.Ftruncate(a, 8192)
	_, e2 := unix.Mmap(a, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	e3 := unix.Unlink(ghost)
	name := filepath.Join(dir, "mapped")
	b := open(&err, name, unix.O_RDWR|unix.O_CREAT)
	e4 := unix.Ftruncate(b, 8192)
	_, e5 := unix.Mmap(b, 0, 8192, unix.PROT_READ, unix.MAP_PRIVATE)
	return []int{a}, errors.Join(err, e1, e2, e3, e4, e5, unix.Close(b))
}

// TestMapping captures files behind mappings.
func TestMapping(t *testing.T) {
	h := start(t, "mapping")
	img := &image{}
	c := NewCapture(h.env(&img.contents))
	defer c.Close()
	_, _, err := c.Table(t.Context(), h.ref())
	ok(t, err)
	ghost := mapping(t, c, h, "ghost (deleted)", true)
	again := mapping(t, c, h, "ghost (deleted)", true)
	plain := mapping(t, c, h, "mapped", false)
	exe, err := c.Path(t.Context(), h.ref(), "exe")
	ok(t, err)
	root, err := c.Path(t.Context(), h.ref(), "root")
	ok(t, err)
	if ghost != again || root != 0 {
		t.Errorf("ids %d %d, root %d", ghost, again, root)
	}
	var tables any
	img.files, tables, err = c.Finish(t.Context())
	ok(t, err)
	_ = tables
	if len(img.contents) != 1 {
		t.Errorf("contents of the deleted file are stored %d times", len(img.contents))
	}
	ok(t, os.Truncate(filepath.Join(h.dir, "mapped"), 4096))
	r := img.restorer(t)
	f, err := r.Mapping(t.Context(), ghost, true, true)
	ok(t, err)
	_, err = unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	ok(t, err)
	if _, err := r.Mapping(t.Context(), exe, false, false); err != nil {
		t.Error(err)
	}
	_, err = r.Mapping(t.Context(), plain, false, false)
	if !errors.Is(err, errs.ErrHost) || !strings.Contains(err.Error(), "8192") || !strings.Contains(err.Error(), "4096") {
		t.Error(err)
	}
	if _, err := r.Mapping(t.Context(), plain, true, true); !errors.Is(err, errs.ErrCorrupt) {
		t.Error(err)
	}
}

func mapping(t *testing.T, c *Capture, h *helper, name string, write bool) uint32 {
	t.Helper()
	maps, err := procfs.ReadMaps(h.pid)
	ok(t, err)
	for _, m := range maps {
		if strings.HasSuffix(m.Name, name) {
			id, err := c.Mapping(t.Context(), h.ref(), m.Start, m.End, write, write)
			ok(t, err)
			return id
		}
	}
	t.Fatalf("no mapping of %s", name)
	return 0
}

func makeFIFOs(dir string) (_ []int, err error) {
	name := filepath.Join(dir, "fifo")
	e1 := unix.Mkfifo(name, 0o600)
	a := open(&err, name, unix.O_RDWR)
	b := open(&err, name, unix.O_RDONLY|unix.O_NONBLOCK)
	c := open(&err, name, unix.O_WRONLY)
	_, e2 := unix.Write(c, []byte("in the fifo"))
	return []int{a, b, c}, errors.Join(err, e1, e2)
}

func TestFIFO(t *testing.T) {
	h := start(t, "fifo")
	img := h.capture(t)
	name := filepath.Join(h.dir, "fifo")
	ok(t, os.Remove(name)) // else the restored ends would join the helper's
	ok(t, unix.Mkfifo(name, 0o600))
	r := img.restorer(t)
	for i := range 3 {
		f, err := r.Open(t.Context(), img.file(t, h, i).Id)
		ok(t, err)
		sameFlags(t, h.pid, h.fds[i], int(f.Fd()))
	}
	f, err := r.Open(t.Context(), img.file(t, h, 1).Id)
	ok(t, err)
	b := make([]byte, 100)
	n, err := unix.Read(int(f.Fd()), b)
	if err != nil || string(b[:n]) != "in the fifo" {
		t.Errorf("%q %v", b[:n], err)
	}
}
