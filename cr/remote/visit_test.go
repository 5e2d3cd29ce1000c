package remote

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/cr/fault"
	"github.com/stasis-cr/stasis/cr/tracer"
	"golang.org/x/sys/unix"
)

// checkCalls makes n calls of which the answers are known.
func checkCalls(ctx context.Context, c Caller, tid, n int) error {
	defer c.Reset()
	at, err := c.Push(make([]byte, 16))
	if err != nil {
		return err
	}
	calls := make([]Call, n)
	for i := range calls {
		switch i % 3 {
		case 0:
			calls[i] = Call{NR: unix.SYS_GETTID}
		case 1:
			calls[i] = Call{NR: unix.SYS_CLOCK_GETTIME, Args: [6]uint64{unix.CLOCK_MONOTONIC, uint64(at)}}
		case 2:
			calls[i] = Call{NR: unix.SYS_CLOSE, Args: [6]uint64{1 << 20}}
		}
	}
	if err := c.Batch(ctx, calls); err != nil {
		return err
	}
	want := []struct {
		ret uint64
		err error
	}{{uint64(tid), nil}, {0, nil}, {0, unix.EBADF}}
	for i := range calls {
		ret, err := calls[i].Result()
		if w := want[i%3]; ret != w.ret || !errors.Is(err, w.err) {
			return fmt.Errorf("call %d answered %d, %w", i, ret, err)
		}
	}
	var ts [16]byte
	if err := c.Read(at, ts[:]); err != nil || ts == [16]byte{} {
		return fmt.Errorf("no time at %x: %w", uint64(at), err)
	}
	return nil
}

func TestVisitLeavesNoTrace(t *testing.T) {
	needRoot(t)
	for _, name := range []string{"nanosleep", "poll", "futex", "blocked", "busy", "routines"} {
		t.Run(name, func(t *testing.T) {
			lock(t)
			p := startReady(t, name)
			n := 0
			for end := time.Now().Add(3 * sleepTime / 2); time.Now().Before(end); n++ {
				if err := visitAll(t.Context(), p.pid(), 80); err != nil {
					t.Fatal(err)
				}
			}
			p.good()
			t.Logf("%d rounds", n)
		})
	}
}

func TestVisitBlockedCall(t *testing.T) {
	needRoot(t)
	for _, name := range []string{"read", "ppoll"} {
		t.Run(name, func(t *testing.T) {
			lock(t)
			p := startReady(t, name)
			for range 200 {
				if err := visitAll(t.Context(), p.pid(), 3); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := p.stdin.Write([]byte("go on\n")); err != nil {
				t.Fatal(err)
			}
			p.good()
		})
	}
}

func TestVisitKeepsMappings(t *testing.T) {
	needRoot(t)
	lock(t)
	p := startReady(t, "idle")
	before := maps(t, p.pid())
	all, err := halt(t.Context(), p.pid())
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		for _, task := range all {
			regs, err := task.Regs()
			if err != nil {
				t.Fatal(err)
			}
			mask, err := task.SigMask()
			if err != nil {
				t.Fatal(err)
			}
			if err := visitOne(t.Context(), task, 300, nil); err != nil {
				t.Fatal(err)
			}
			regs2, err := task.Regs()
			if err != nil {
				t.Fatal(err)
			}
			mask2, err := task.SigMask()
			if err != nil || regs != regs2 || mask != mask2 {
				t.Errorf("task %d: %+v, mask %x became %+v, %x (%v)", task.TID, regs, mask, regs2, mask2, err)
			}
		}
	}
	if after := maps(t, p.pid()); after != before {
		t.Errorf("mappings became\n%s, they were\n%s", after, before)
	}
	if err := detach(all); err != nil {
		t.Fatal(err)
	}
}

// TestVisitStopped visits a process that job control has stopped.
func TestVisitStopped(t *testing.T) {
	needRoot(t)
	lock(t)
	p := startReady(t, "idle")
	if err := p.cmd.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_PID, p.pid(), &info, unix.WSTOPPED, nil); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if err := visitAll(t.Context(), p.pid(), 80); err != nil {
			t.Fatal(err)
		}
		until(t, "stopped again", func() bool { return state(t, p.pid()) == "T" })
	}
	var ws unix.WaitStatus
	if pid, err := unix.Wait4(p.pid(), &ws, unix.WNOHANG|unix.WUNTRACED, nil); err != nil || pid != 0 {
		t.Errorf("a second report of the stop: %v, %v, %v", pid, ws, err)
	}
	if err := p.cmd.Process.Signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if _, err := p.stdin.Write([]byte("\n")); err != nil {
		t.Fatal(err)
	}
	p.good()
}

// TestVisitStoppedKilled kills the engine in a process that job control has stopped.
// The task may stand in the stub then until it is continued, but it can be visited,
// and it goes on as if nothing had happened.
func TestVisitStoppedKilled(t *testing.T) {
	needRoot(t)
	for _, point := range visitPoints() {
		t.Run(point+"/many threads", func(t *testing.T) {
			p := startReady(t, "idle")
			visitStopped(t, p.cmd.Process, point)
			if _, err := p.stdin.Write([]byte("\n")); err != nil {
				t.Fatal(err)
			}
			p.good()
		})
		t.Run(point+"/mappings", func(t *testing.T) {
			p := sleeper(t)
			before := maps(t, p.Pid)
			visitStopped(t, p, point)
			until(t, "mappings are as before", func() bool { return maps(t, p.Pid) == before })
			until(t, "asleep again", func() bool { return state(t, p.Pid) == "S" })
		})
	}
}

// sleeper starts a program that maps nothing on its own, unlike Go's runtime, and
// sleeps.
func sleeper(t *testing.T) *os.Process {
	t.Helper()
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // ours
		_ = cmd.Wait()
	})
	until(t, "asleep", func() bool { return state(t, cmd.Process.Pid) == "S" })
	return cmd.Process
}

// visitStopped stops a process and lets engines die in it at a point. Each time it can
// be visited all the same. In the end it is continued.
func visitStopped(t *testing.T, p *os.Process, point string) {
	t.Helper()
	lock(t)
	stopped := func() bool { return state(t, p.Pid) == "T" }
	if err := p.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	until(t, "stopped", stopped)
	for range 4 {
		engine := startReady(t, "visit", fmt.Sprintf("%s=%d", pidEnv, p.Pid), fault.Env+"="+point+"=kill")
		_ = engine.cmd.Wait() // killed
		until(t, "stopped again", stopped)
		if err := visitAll(t.Context(), p.Pid, 80); err != nil {
			t.Fatal(err)
		}
		until(t, "stopped again", stopped)
	}
	if err := p.Signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
}

// visitPoints are the steps of a visit.
func visitPoints() []string {
	return []string{
		"visit-written", "visit-entered", "visit-masked", "visit-running", "visit-mapped",
		"visit-batch-written", "visit-batch-done", "visit-lent", "visit-closing", "visit-unmapped",
		"visit-unmasked", "visit-left", "visit-erased",
	}
}

// TestVisitKilled kills the engine at each step of a visit, and makes each step
// fail: the program goes on.
func TestVisitKilled(t *testing.T) {
	needRoot(t)
	for _, point := range visitPoints() {
		for mode, names := range map[string][]string{
			"kill": {"nanosleep", "busy", "routines", "blocked"}, "error": {"nanosleep", "routines"},
		} {
			for _, name := range names {
				t.Run(point+"/"+mode+"/"+name, func(t *testing.T) {
					t.Parallel()
					p := startReady(t, name)
					pid := fmt.Sprintf("%s=%d", pidEnv, p.pid())
					engine := startReady(t, "visit", pid, fault.Env+"="+point+"="+mode)
					if mode == "error" {
						if s := engine.line(); !strings.Contains(s, fmt.Sprintf("fault injected at %q", point)) {
							t.Errorf("engine: %s", s)
						}
					}
					_ = engine.cmd.Wait() // it failed or was killed
					p.good()
				})
			}
		}
	}
}

// killEngine has an engine visit a process and kills it at a random moment.
func killEngine(t *testing.T, pid int) {
	t.Helper()
	engine := startReady(t, "visit", fmt.Sprintf("%s=%d", pidEnv, pid))
	pause := time.Duration(rand.Int64N(int64(3 * time.Millisecond)))
	for end := time.Now().Add(pause); time.Now().Before(end); {
		runtime.Gosched()
	}
	if err := engine.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = engine.cmd.Wait() // killed
}

// deaths of engines that a program goes through: more than the vdso has slots,
// so that those left behind must be used again.
const deaths = 12

// TestVisitKilledAnywhere kills the engine at random moments.
func TestVisitKilledAnywhere(t *testing.T) {
	needRoot(t)
	for _, name := range []string{"idle", "busy", "routines"} {
		for i := range 8 {
			t.Run(fmt.Sprintf("%s/%d", name, i), func(t *testing.T) {
				t.Parallel()
				p := startReady(t, name, untilInputEnv+"=1")
				lock(t)
				for range deaths {
					killEngine(t, p.pid())
				}
				if err := visitAll(t.Context(), p.pid(), 80); err != nil {
					t.Error(err)
				}
				if _, err := p.stdin.Write([]byte("\n")); err != nil {
					t.Fatal(err)
				}
				p.good()
			})
		}
	}
}

// TestVisitKilledKeepsMappings does the same to a program that maps nothing on
// its own, unlike Go's runtime.
func TestVisitKilledKeepsMappings(t *testing.T) {
	needRoot(t)
	lock(t)
	for range 16 {
		pid := sleeper(t).Pid
		before, fds := maps(t, pid), descriptors(t, pid)
		for range deaths {
			killEngine(t, pid)
		}
		until(t, "descriptors are as before", func() bool { return slices.Equal(descriptors(t, pid), fds) })
		until(t, "mappings are as before", func() bool { return maps(t, pid) == before })
		until(t, "asleep again", func() bool { return state(t, pid) == "S" })
		if err := visitAll(t.Context(), pid, 80); err != nil {
			t.Error(err)
		}
	}
}

// TestVisitFailedKeepsMappings makes each step of a visit fail.
func TestVisitFailedKeepsMappings(t *testing.T) {
	needRoot(t)
	pid := sleeper(t).Pid
	before, fds := maps(t, pid), descriptors(t, pid)
	for _, point := range visitPoints() {
		engine := startReady(t, "visit", fmt.Sprintf("%s=%d", pidEnv, pid), fault.Env+"="+point+"=error")
		if s := engine.line(); !strings.Contains(s, fmt.Sprintf("fault injected at %q", point)) {
			t.Errorf("engine: %s", s)
		}
		_ = engine.cmd.Wait() // it failed
		if after := maps(t, pid); after != before {
			t.Fatalf("%s: mappings became\n%s, they were\n%s", point, after, before)
		}
		if got := descriptors(t, pid); !slices.Equal(got, fds) {
			t.Fatalf("%s: descriptors became %v, they were %v", point, got, fds)
		}
	}
	until(t, "asleep again", func() bool { return state(t, pid) == "S" })
}

// TestVisitKilledLending kills the engine while it has a descriptor of the
// program's: the program closes it.
func TestVisitKilledLending(t *testing.T) {
	needRoot(t)
	pid := sleeper(t).Pid
	before, fds := maps(t, pid), descriptors(t, pid)
	engine := startReady(t, "visit", fmt.Sprintf("%s=%d", pidEnv, pid), fault.Env+"=visit-lent=kill")
	_ = engine.cmd.Wait() // it died
	until(t, "the descriptor is gone", func() bool { return slices.Equal(descriptors(t, pid), fds) })
	until(t, "mappings are as before", func() bool { return maps(t, pid) == before })
}

// descriptors are the numbers that a process has open.
func descriptors(t *testing.T, pid int) (numbers []string) {
	t.Helper()
	names, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		numbers = append(numbers, n.Name())
	}
	return numbers
}

// TestVisitQueuedSignals sends signals while their receiver is visited.
func TestVisitQueuedSignals(t *testing.T) {
	needRoot(t)
	lock(t)
	p := startReady(t, "queue")
	tid, err := strconv.Atoi(p.line())
	if err != nil {
		t.Fatal(err)
	}
	sent := make(chan error, 1)
	go func() {
		for range queued {
			if err := unix.Tgkill(p.pid(), tid, 50); err != nil {
				sent <- err
				return
			}
			runtime.Gosched()
		}
		sent <- nil
	}()
	for done := false; !done; {
		select {
		case err := <-sent:
			if err != nil {
				t.Fatal(err)
			}
			done = true
		default:
		}
		if err := visitAll(t.Context(), p.pid(), 9); err != nil {
			t.Fatal(err)
		}
	}
	p.good()
}

// TestVisitStopArrives stops a program by job control while it is visited: the
// stop must not get lost, with a bell that the program catches, as a Go program
// does, or not.
func TestVisitStopArrives(t *testing.T) {
	needRoot(t)
	lock(t)
	p := startReady(t, "idle")
	sh := exec.Command("sleep", "60")
	if err := sh.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = sh.Process.Kill() // ours
		_ = sh.Wait()
	}()
	for _, pid := range []int{p.pid(), sh.Process.Pid} {
		for range 100 {
			sent := make(chan error, 1)
			go func() { sent <- unix.Kill(pid, unix.SIGSTOP) }()
			for range 3 {
				if err := visitAll(t.Context(), pid, 30); err != nil {
					t.Fatal(err)
				}
			}
			if err := <-sent; err != nil {
				t.Fatal(err)
			}
			until(t, "stopped", func() bool { return state(t, pid) == "T" })
			if err := unix.Kill(pid, unix.SIGCONT); err != nil {
				t.Fatal(err)
			}
			until(t, "going on", func() bool { return state(t, pid) == "S" })
		}
	}
}

// TestVisitFiltered visits a task whose seccomp filter allows none of our calls.
func TestVisitFiltered(t *testing.T) {
	needRoot(t)
	lock(t)
	p := startReady(t, "filtered")
	for range 20 {
		if err := visitAll(t.Context(), p.pid(), 80); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := p.stdin.Write([]byte("\n")); err != nil {
		t.Fatal(err)
	}
	p.good()
}

// TestVisitGone kills a task that is visited.
func TestVisitGone(t *testing.T) {
	needRoot(t)
	lock(t)
	p := startReady(t, "idle")
	task, err := tracer.Seize(p.pid(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := task.Halt(t.Context(), bound); err != nil {
		t.Fatal(err)
	}
	v, err := Visit(t.Context(), task, VisitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	err = checkCalls(t.Context(), v, task.TID, 9)
	if err := errors.Join(err, v.Close(t.Context())); !errors.Is(err, errs.ErrGone) {
		t.Errorf("got %v, want ErrGone", err)
	}
}

func BenchmarkVisit(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("missing: root, to trace processes")
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill() // ours, and it may be gone
		_ = cmd.Wait()
	}()
	task, err := tracer.Seize(cmd.Process.Pid, 0)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := task.Halt(b.Context(), bound); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := visitOne(b.Context(), task, 80, nil); err != nil {
			b.Fatal(err)
		}
	}
}
