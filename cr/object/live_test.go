package object

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/procfs"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// The live tests run this test binary again as a helper that makes objects, says
// under which numbers, and waits. The objects are captured from outside and
// restored into the test's own process.
const helperVar = "STASIS_OBJECT_HELPER"

func TestMain(m *testing.M) {
	name := os.Getenv(helperVar)
	if name == "" {
		os.Exit(m.Run())
	}
	if err := help(name); err != nil {
		fmt.Fprintln(os.Stderr, name, err)
		os.Exit(1)
	}
}

// made is what a helper's case makes: descriptors in the order that the test
// knows them by.
type made func(dir string) ([]int, error)

func help(name string) error {
	runtime.LockOSThread() // for cases that change the user of the thread

	fds, err := helperCases()[name](os.Getenv("STASIS_OBJECT_DIR"))
	if err != nil {
		return err
	}
	fmt.Println(strings.Trim(fmt.Sprint(fds), "[]"))
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("root is missing")
	}
	t.Skip("root is missing")
}

// helper is a running helper.
type helper struct {
	pid int
	fds []int
	dir string
	end func() // ends it and waits
}

func start(t testing.TB, name string, change ...func(*exec.Cmd)) *helper {
	t.Helper()
	needRoot(t)
	h := &helper{dir: t.TempDir()}
	// What the test itself inherited is no business of the helper's.
	ok(t, unix.CloseRange(3, 1<<32-1, unix.CLOSE_RANGE_CLOEXEC))
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), helperVar+"="+name, "STASIS_OBJECT_DIR="+h.dir)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	for _, f := range change {
		f(cmd)
	}
	stdin, err := cmd.StdinPipe()
	ok(t, err)
	stdout, err := cmd.StdoutPipe()
	ok(t, err)
	ok(t, cmd.Start())
	h.end = sync.OnceFunc(func() {
		stdin.Close()
		if err := cmd.Wait(); err != nil && t.Context().Err() == nil {
			t.Errorf("helper: %v", err)
		}
	})
	t.Cleanup(h.end)
	line, err := bufio.NewReader(stdout).ReadString('\n')
	ok(t, err)
	for f := range strings.FieldsSeq(line) {
		n, err := strconv.Atoi(f)
		ok(t, err)
		h.fds = append(h.fds, n)
	}
	h.pid = cmd.Process.Pid
	return h
}

// stop ends the helper and answers what its sockets were.
func (h *helper) stop(t *testing.T) []string {
	t.Helper()
	var was []string
	for _, n := range h.fds {
		fd, err := (&Desc{HostPID: h.pid, FD: n}).get()
		ok(t, err)
		was = append(was, describe(fd))
		ok(t, unix.Close(fd))
	}
	h.end()
	return was
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// onThread stands in for a container's namespaces: the thread's own are as good.
func onThread(_ context.Context, _ int, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// contents keeps what a capture stores.
type contents [][]byte

func (c *contents) Write(_ context.Context, r io.ReaderAt, size int64) (uint32, error) {
	b := make([]byte, size)
	if _, err := r.ReadAt(b, 0); err != nil && err != io.EOF {
		return 0, err
	}
	*c = append(*c, b)
	return uint32(len(*c)), nil
}

func (c *contents) read(_ context.Context, id uint32, w *os.File) error {
	_, err := w.WriteAt((*c)[id-1], 0)
	return err
}

func (h *helper) env(c *contents) Env {
	env := Env{
		InitPID: h.pid, Pages: c, Enter: onThread, FileLocks: true,
		ContainerPID: func(pid int) int { return pid },
	}
	for fd := range 3 {
		link, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", h.pid, fd))
		env.Externals = append(env.Externals, link)
	}
	return env
}

func (h *helper) ref() ProcRef { return ProcRef{HostPID: h.pid, PID: h.pid} }

// image is what a capture of one helper answered.
type image struct {
	files    []*blob.File
	table    *blob.FDTable
	locks    []*blob.FileLock
	contents contents
}

func (h *helper) capture(t *testing.T) *image {
	t.Helper()
	img := &image{}
	c := NewCapture(h.env(&img.contents))
	defer c.Close()
	var err error
	_, img.locks, err = c.Table(t.Context(), h.ref())
	ok(t, err)
	var tables []*blob.FDTable
	img.files, tables, err = c.Finish(t.Context())
	ok(t, err)
	img.table = tables[0]
	return img
}

// refusal captures and answers why that failed.
func (h *helper) refusal(t *testing.T, change func(*Env)) error {
	t.Helper()
	env := h.env(&contents{})
	if change != nil {
		change(&env)
	}
	c := NewCapture(env)
	defer c.Close()
	_, _, err := c.Table(t.Context(), h.ref())
	if err == nil {
		_, _, err = c.Finish(t.Context())
	}
	if err == nil {
		t.Fatal("captured what can't be saved")
	}
	return err
}

// file finds the record of the helper's n-th descriptor.
func (img *image) file(t *testing.T, h *helper, n int) *blob.File {
	t.Helper()
	for _, fd := range img.table.Fds {
		if int(fd.Fd) == h.fds[n] {
			return img.files[fd.File-1]
		}
	}
	t.Fatalf("no record of descriptor %d", h.fds[n])
	return nil
}

func (img *image) restorer(t *testing.T) *Restorer {
	t.Helper()
	r, err := NewRestorer(RestoreEnv{
		InitPID: os.Getpid(),
		Stdio:   [3]*os.File{os.Stdin, os.Stdout, os.Stderr}, Files: img.files,
		ReadContents: img.contents.read, Enter: onThread, HostPID: func(pid int) int { return pid },
	})
	ok(t, err)
	t.Cleanup(func() { ok(t, r.Close()) })
	return r
}

// restore captures the helper and opens its descriptors here.
func (h *helper) restore(t *testing.T) []*os.File {
	t.Helper()
	img := h.capture(t)
	r := img.restorer(t)
	var files []*os.File
	for n := range h.fds {
		f, err := r.Open(t.Context(), img.file(t, h, n).Id)
		ok(t, err)
		files = append(files, f)
	}
	ok(t, r.Arm(t.Context(), img.locks))
	for n, f := range files {
		sameFlags(t, h.pid, h.fds[n], int(f.Fd()))
	}
	return files
}

// sameFlags compares what the kernel says of the original and of the copy.
func sameFlags(t *testing.T, pid, fd, mine int) {
	t.Helper()
	was, err := procfs.ReadFDInfo(pid, fd)
	ok(t, err)
	now, err := procfs.ReadFDInfo(os.Getpid(), mine)
	ok(t, err)
	if was.Flags|unix.O_CLOEXEC != now.Flags|unix.O_CLOEXEC || was.Pos != now.Pos {
		t.Errorf("fd %d: flags %#o, position %d; restored %#o, %d", fd, was.Flags, was.Pos, now.Flags, now.Pos)
	}
}

func kcmpFile(t *testing.T, a, b *os.File) int {
	t.Helper()
	r, err := kcmpSelf(int(a.Fd()), int(b.Fd()))
	ok(t, err)
	return r
}

func itoa(n int) string { return strconv.Itoa(n) }

func unmarshal(t *testing.T, f *blob.File, m proto.Message) {
	t.Helper()
	ok(t, proto.Unmarshal(f.Body, m))
}
