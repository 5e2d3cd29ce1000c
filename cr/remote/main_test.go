package remote

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stasis-cr/stasis/cr/tracer"
	"golang.org/x/sys/unix"
)

// helperEnv makes the test binary be one of the programs of helpers instead.
const helperEnv = "STASIS_REMOTE_HELPER"

func TestMain(m *testing.M) {
	if name, ok := os.LookupEnv(helperEnv); ok {
		if err := helpers()[name](); err != nil {
			fmt.Println("bad:", err)
			os.Exit(1)
		}
		fmt.Println("good")
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// need skips a test that can't run here, and fails it where it must be able to.
func need(t *testing.T, ok bool, what string) {
	t.Helper()
	switch {
	case ok:
	case os.Getenv("CI") == "true":
		t.Fatal("missing: " + what)
	default:
		t.Skip("missing: " + what)
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	need(t, os.Geteuid() == 0, "root, to trace processes")
}

// lock ties the test to the OS thread that traces.
func lock(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
}

// program is a running helper.
type program struct {
	t     *testing.T
	cmd   *exec.Cmd
	out   *bufio.Reader
	stdin io.WriteCloser
}

func start(t *testing.T, name string, env ...string) *program {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(append(os.Environ(), helperEnv+"="+name), env...)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &program{t: t, cmd: cmd, out: bufio.NewReader(stdout), stdin: stdin}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may be gone, which is as well
		until(t, "threads are gone", func() bool { return !reap(cmd.Process.Pid) })
		_ = cmd.Wait()
	})
	return p
}

// reap waits for the dead threads of a killed process, if we still trace them,
// and says whether there are any left.
func reap(pid int) (left bool) {
	dirs, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	for _, d := range dirs {
		if tid, e := strconv.Atoi(filepath.Base(d)); e == nil && tid != pid {
			left = true
			_, _ = unix.Wait4(tid, nil, unix.WNOHANG|unix.WALL, nil) // ECHILD: not ours
		}
	}
	return left && err == nil
}

func (p *program) pid() int { return p.cmd.Process.Pid }

// line reads the next line that the helper prints.
func (p *program) line() string {
	p.t.Helper()
	s, err := p.out.ReadString('\n')
	if err != nil {
		p.t.Fatalf("helper said %q: %v", s, err)
	}
	return strings.TrimSpace(s)
}

// startReady starts a helper and waits until it says that it is set up.
func startReady(t *testing.T, name string, env ...string) *program {
	t.Helper()
	p := start(t, name, env...)
	if s := p.line(); s != "ready" {
		t.Fatalf("helper said %q, not ready", s)
	}
	return p
}

// good waits for the helper's verdict on itself.
func (p *program) good() {
	p.t.Helper()
	if s := p.line(); s != "good" {
		p.t.Fatalf("helper found: %s", s)
	}
}

// until polls a condition.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

// state is the letter of /proc/PID/stat.
func state(t *testing.T, pid int) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	s := string(b)
	return s[strings.LastIndex(s, ")")+2:][:1]
}

func maps(t *testing.T, pid int) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

const bound = 10 * time.Second

// halt attaches to and stops all threads of a process.
func halt(ctx context.Context, pid int) (all []*tracer.Task, err error) {
	seen := map[int]bool{}
	for grown := true; grown; {
		grown = false
		dirs, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
		if err != nil {
			return all, err
		}
		for _, d := range dirs {
			tid, err := strconv.Atoi(filepath.Base(d))
			if err != nil || seen[tid] {
				continue
			}
			seen[tid], grown = true, true
			task, err := tracer.Seize(tid, 0)
			if err != nil {
				return all, err
			}
			if _, err := task.Halt(ctx, bound); err != nil {
				return all, err
			}
			all = append(all, task)
		}
	}
	return all, nil
}

func detach(all []*tracer.Task) error {
	for _, task := range all {
		if err := task.Detach(0); err != nil {
			return err
		}
	}
	return nil
}

// visitAll stops a process, visits its threads, three at a time unless job control
// has stopped them, each with a batch of calls, and lets it go.
func visitAll(ctx context.Context, pid, calls int) error {
	all, err := halt(ctx, pid)
	if err != nil {
		return err
	}
	always, most := func(int) bool { return true }, 3
	if all[0].Stopped() {
		most = 1 // each that we die in would keep its slot
	}
	err = Together(len(all), most, always, func(i int, idle Idle) error { return visitOne(ctx, all[i], calls, idle) })
	return errors.Join(err, detach(all))
}

func visitOne(ctx context.Context, task *tracer.Task, n int, idle Idle) error {
	v, err := Visit(ctx, task, VisitOptions{Idle: idle})
	if err != nil {
		return err
	}
	return errors.Join(checkCalls(ctx, v, task.TID, n), checkLend(ctx, v), v.Close(ctx))
}

// checkLend borrows an eventfd that the task makes.
func checkLend(ctx context.Context, v *Visitor) error {
	f, err := v.Lend(ctx, Call{NR: unix.SYS_EVENTFD2, Args: [6]uint64{7, unix.EFD_CLOEXEC}}, "eventfd")
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, 8)
	if n, err := f.Read(b); n != 8 || err != nil || b[0] != 7 {
		return fmt.Errorf("read %d bytes %v of the eventfd: %w", n, b, err)
	}
	if f, err := v.Lend(ctx, Call{NR: unix.SYS_EVENTFD2, Args: [6]uint64{0, 2}}, "eventfd"); !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("a call that fails lends %v: %w", f, err)
	}
	return nil
}
