package remote

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
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
			if err := visitOne(t.Context(), task, 300); err != nil {
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

// TestVisitKilled kills the engine at each step of a visit, and the program
// goes on.
func TestVisitKilled(t *testing.T) {
	needRoot(t)
	for _, point := range []string{
		"visit-written", "visit-entered", "visit-masked", "visit-running", "visit-mapped",
		"visit-batch-written", "visit-batch-done", "visit-closing", "visit-unmapped",
		"visit-unmasked", "visit-left", "visit-erased",
	} {
		for _, name := range []string{"nanosleep", "busy", "routines", "blocked"} {
			t.Run(point+"/"+name, func(t *testing.T) {
				t.Parallel()
				p := startReady(t, name)
				pid := fmt.Sprintf("%s=%d", pidEnv, p.pid())
				engine := startReady(t, "visit", pid, fault.Env+"="+point+"=kill")
				err := engine.cmd.Wait()
				if ws := engine.cmd.ProcessState.Sys().(interface{ Signaled() bool }); !ws.Signaled() {
					t.Fatalf("engine: %v", err)
				}
				p.good()
			})
		}
	}
}

// TestVisitKilledAnywhere kills the engine at random moments.
func TestVisitKilledAnywhere(t *testing.T) {
	needRoot(t)
	p := startReady(t, "idle")
	before := maps(t, p.pid())
	pid := fmt.Sprintf("%s=%d", pidEnv, p.pid())
	for i := range 40 {
		engine := startReady(t, "visit", pid)
		for end := time.Now().Add(time.Duration(i) * 137 * time.Microsecond); time.Now().Before(end); {
		}
		if err := engine.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = engine.cmd.Wait() // killed
		if t.Failed() {
			return
		}
	}
	until(t, "mappings are as before", func() bool { return maps(t, p.pid()) == before })
	if _, err := p.stdin.Write([]byte("\n")); err != nil {
		t.Fatal(err)
	}
	p.good()
}

// TestVisitFaults makes each step fail: the visit reports it, and the program
// goes on all the same.
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
		if err := visitOne(b.Context(), task, 80); err != nil {
			b.Fatal(err)
		}
	}
}
