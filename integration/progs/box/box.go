package box

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Engine is a command line with the verbs of an OCI runtime. Both fields may be
// the same program.
type Engine struct {
	Runtime string   // makes, kills and deletes containers
	Save    string   // checkpoints and restores them
	Wrap    []string // a command that runs Save, which follows with its arguments
	Flags   []string // global flags of Save
	Env     []string // besides ours, for Save
}

// Box is one container and its bundle.
type Box struct {
	ID     string
	Engine Engine
	PID    int // of the container's first process, in our namespace

	dir  string
	out  output
	pipe *os.File
	done chan struct{} // closed when nobody holds the container's stdio any more
}

// output is what the container and its runtime printed.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return strings.TrimSpace(o.buf.String())
}

// Adopt makes us the parent of the orphans among our descendants, for [Box.Wait].
func Adopt() error { return unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }

// New makes the bundle of a container in dir, which must exist. Nothing runs yet.
func New(ctx context.Context, dir, id string, e Engine, p Programs, c Config) (*Box, error) {
	b := &Box{ID: id, Engine: e, dir: dir}
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	for _, d := range []string{"bin", "ctl", "proc", "sys", "dev", "tmp", "etc"} {
		if err := os.MkdirAll(b.Path(d), 0o755); err != nil {
			return nil, err
		}
	}
	err := errors.Join(os.Chmod(b.Path("ctl"), 0o777), os.Chmod(b.Path("tmp"), 0o777|os.ModeSticky))
	if err != nil {
		return nil, err
	}
	for name, from := range map[string]string{"progs": p.Go, "cprogs": p.C, "other": p.C} {
		if err := copyFile(from, b.Path("bin", name)); err != nil {
			return nil, err
		}
	}
	if p.Shell != "" {
		if err := b.shell(p.Shell); err != nil {
			return nil, err
		}
	}
	return b, writeSpec(ctx, e.Runtime, dir, c)
}

// shell puts a static busybox into the box, under the names that it goes by.
func (b *Box) shell(path string) error {
	if err := copyFile(path, b.Path("bin", "busybox")); err != nil {
		return err
	}
	for _, name := range []string{"sh", "sleep"} {
		if err := os.Symlink("busybox", b.Path("bin", name)); err != nil {
			return err
		}
	}
	return nil
}

// Path is a file of the container, as we see it.
func (b *Box) Path(elem ...string) string {
	return filepath.Join(append([]string{b.dir, "rootfs"}, elem...)...)
}

// Output is what the container and its runtime printed so far.
func (b *Box) Output() string { return b.out.String() }

func (b *Box) state() string { return filepath.Join(b.dir, "state") }

// stdio gives cmd a pipe for its output, whose other end we drain.
func (b *Box) stdio(cmd *exec.Cmd) (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = w, w
	b.pipe, b.done = r, make(chan struct{})
	go func(done chan struct{}) {
		defer close(done)
		for chunk := make([]byte, 4096); ; {
			n, err := r.Read(chunk)
			if n > 0 {
				_, _ = b.out.Write(chunk[:n]) //nolint:errcheck // memory takes all
			}
			if err != nil {
				return // the end, or our own close
			}
		}
	}(b.done)
	return w, nil
}

// detached runs a command that leaves a container behind, and notes its pid.
func (b *Box) detached(cmd *exec.Cmd) error {
	w, err := b.stdio(cmd)
	if err != nil {
		return err
	}
	err = errors.Join(cmd.Run(), w.Close())
	if err != nil {
		return fmt.Errorf("%s: %w: %s", filepath.Base(cmd.Path), err, brief(b.Output()))
	}
	text, err := os.ReadFile(filepath.Join(b.dir, "pid"))
	if err != nil {
		return err
	}
	b.PID, err = strconv.Atoi(string(text))
	return err
}

// Run starts the container.
func (b *Box) Run(ctx context.Context) error {
	return b.detached(exec.CommandContext(ctx, b.Engine.Runtime, "--root", b.state(),
		"run", "--detach", "--bundle", b.dir, "--pid-file", filepath.Join(b.dir, "pid"), b.ID))
}

func (b *Box) save(ctx context.Context, args ...string) *exec.Cmd {
	line := slices.Concat(b.Engine.Wrap, []string{b.Engine.Save, "--root", b.state()}, b.Engine.Flags, args)
	cmd := exec.CommandContext(ctx, line[0], line[1:]...)
	cmd.Env = append(os.Environ(), b.Engine.Env...)
	return cmd
}

// Checkpoint writes an image to folder image. Flags are those of runc checkpoint.
func (b *Box) Checkpoint(ctx context.Context, image string, flags ...string) error {
	args := append([]string{"checkpoint", "--image-path", image, "--work-path", image}, flags...)
	return command(b.save(ctx, append(args, b.ID)...))
}

// Knows tells whether Save has a verb with these flags, by asking for its help:
// a flag that it does not have, or refuses, is an error before that. The benchmark
// asks it, as it can be pointed at another build than this tree's.
func (e Engine) Knows(ctx context.Context, verb string, flags ...string) bool {
	return exec.CommandContext(ctx, e.Save, append(append([]string{verb}, flags...), "--help")...).Run() == nil
}

// Check asks the engine whether the container can be checkpointed.
func (b *Box) Check(ctx context.Context) error { return command(b.save(ctx, "check", b.ID)) }

// Restore starts the container from an image, in the same bundle.
func (b *Box) Restore(ctx context.Context, image string, flags ...string) error {
	args := append([]string{
		"restore", "--detach", "--image-path", image, "--work-path", image, "--bundle", b.dir,
		"--pid-file", filepath.Join(b.dir, "pid"),
	}, flags...)
	return b.detached(b.save(ctx, append(args, b.ID)...))
}

// Wait reaps the container's first process and answers its exit status, 128 and
// more for a signal.
func (b *Box) Wait(ctx context.Context) (int, error) {
	var ws unix.WaitStatus
	err := Poll(ctx, func() (bool, error) {
		pid, err := unix.Wait4(b.PID, &ws, unix.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			return false, nil
		}
		return pid == b.PID, err
	})
	if ws.Signaled() {
		return 128 + int(ws.Signal()), err
	}
	return ws.ExitStatus(), err
}

// removeBound is how long a container may take to go: the kernel gives back its
// memory before its cgroup is empty, and runc does not wait for that.
const removeBound = 20 * time.Second

// Remove kills the container if it runs, and makes the runtime forget it. A box
// that is gone already is no error.
func (b *Box) Remove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, removeBound)
	defer cancel()
	var last error
	err := Poll(ctx, func() (bool, error) {
		if !exists(filepath.Join(b.state(), b.ID)) {
			return true, nil
		}
		last = command(exec.CommandContext(ctx, b.Engine.Runtime, "--root", b.state(), "delete", "--force", b.ID))
		_, err := unix.Wait4(b.PID, nil, unix.WNOHANG, nil)
		if errors.Is(err, unix.ECHILD) || errors.Is(err, unix.EINTR) {
			err = nil
		}
		return last == nil, err
	})
	if err != nil {
		err = errors.Join(err, last)
	}
	return errors.Join(err, b.closePipe())
}

func (b *Box) closePipe() error {
	if b.pipe == nil {
		return nil
	}
	err := b.pipe.Close()
	<-b.done
	b.pipe = nil
	return err
}

// AwaitReady waits until the program has set its object up.
func (b *Box) AwaitReady(ctx context.Context) error {
	return Poll(ctx, func() (bool, error) {
		if text, err := os.ReadFile(b.Path("ctl", "result")); err == nil && len(text) > 0 {
			return false, fmt.Errorf("before ready: %s", strings.TrimSpace(string(text)))
		}
		if !alive(b.PID) {
			return false, fmt.Errorf("ended before it was ready: %s", b.Output())
		}
		return exists(b.Path("ctl", "ready")), nil
	})
}

// alive tells whether a process runs; a zombie doesn't.
func alive(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	after := text[bytes.LastIndexByte(text, ')')+1:]
	return len(after) > 1 && after[1] != 'Z'
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// Go lets the program check itself, and returns an error that holds its FAIL
// line if it isn't content.
func (b *Box) Go(ctx context.Context) error {
	if err := os.WriteFile(b.Path("ctl", "go"), nil, 0o644); err != nil {
		return err
	}
	status, err := b.Wait(ctx)
	text, _ := os.ReadFile(b.Path("ctl", "result")) //nolint:errcheck // no result is told below
	result := strings.TrimSpace(string(text))
	switch {
	case err != nil:
		return fmt.Errorf("no end after go: %w: %s %s", err, result, b.Output())
	case status != 0 || result != "ok":
		return fmt.Errorf("exit status %d: %s %s", status, result, b.Output())
	}
	return nil
}

// Poll asks until ask says true or an error, or ctx ends.
func Poll(ctx context.Context, ask func() (bool, error)) error {
	for wait := 100 * time.Microsecond; ; wait = min(2*wait, 10*time.Millisecond) {
		done, err := ask()
		if done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(wait):
		}
	}
}
