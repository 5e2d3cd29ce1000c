package tracer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/cr/sys"
	"golang.org/x/sys/unix"
)

func TestDecode(t *testing.T) {
	for _, c := range []struct {
		status unix.WaitStatus
		want   Stop
	}{
		{0x0000, Stop{Kind: Gone, Exited: true}},
		{0x2a00, Stop{Kind: Gone, Exited: true}},
		{0x000f, Stop{Kind: Gone, Signal: unix.SIGTERM}},
		{0x008b, Stop{Kind: Gone, Signal: unix.SIGSEGV}}, // core dumped
		{0x0a7f, Stop{Kind: Signal, Signal: unix.SIGUSR1}},
		{0x057f, Stop{Kind: Signal, Signal: unix.SIGTRAP}},
		{0x80057f, Stop{Kind: Interrupted}},
		{0x80137f, Stop{Kind: Group, Signal: unix.SIGSTOP}},
		{0x80147f, Stop{Kind: Group, Signal: unix.SIGTSTP}},
		{0x1057f, Stop{Kind: Event, Event: unix.PTRACE_EVENT_FORK}},
		{0x4057f, Stop{Kind: Event, Event: unix.PTRACE_EVENT_EXEC}},
		{0x857f, Stop{Kind: Syscall}},
	} {
		c.want.Status = c.status
		if got := decode(c.status); got != c.want {
			t.Errorf("%#x: %+v, want %+v", int(c.status), got, c.want)
		}
	}
}

const bound = 10 * time.Second

// halted starts a program, attaches to it and stops it.
func halted(t *testing.T, options int, cmd *exec.Cmd) *Task {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("missing: root, to trace processes")
		}
		t.Skip("missing: root, to trace processes")
	}
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may be gone, which is as well
		_ = cmd.Wait()
	})
	task, err := Seize(cmd.Process.Pid, options)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := task.Halt(t.Context(), bound); err != nil {
		t.Fatal(err)
	}
	return task
}

func sleeper() *exec.Cmd { return exec.Command("sleep", "60") }

func TestRegisters(t *testing.T) {
	task := halted(t, 0, sleeper())
	regs, err := task.Regs()
	if err != nil {
		t.Fatal(err)
	}
	if err := task.SetRegs(&regs); err != nil {
		t.Fatal(err)
	}
	general, err := task.Regset(NTPrStatus)
	if err != nil || len(general) != 27*8 || binary.NativeEndian.Uint64(general[16*8:]) != regs.Rip {
		t.Errorf("NT_PRSTATUS has %d bytes: %v", len(general), err)
	}
	x, err := task.Regset(NTX86XState)
	if err != nil || len(x) < 512+64 {
		t.Fatalf("NT_X86_XSTATE has %d bytes: %v", len(x), err)
	}
	copy(x[32:], "ST0 of the x87") // st0, 10 bytes of it kept
	x[512] |= 1                    // xstate_bv: x87 not in its initial state
	if err := task.SetRegset(NTX86XState, x); err != nil {
		t.Fatal(err)
	}
	if y, err := task.Regset(NTX86XState); err != nil || !bytes.HasPrefix(y[32:], []byte("ST0 of the")) {
		t.Errorf("ST0 is %q: %v", y[32:48], err)
	}
	d := [8]uint64{0: regs.Rip &^ 7, 7: 1}
	if err := task.SetDebugRegs(d); err != nil {
		t.Fatal(err)
	}
	got, err := task.DebugRegs()
	if err != nil || got[0] != d[0] || got[7]&1 != 1 {
		t.Errorf("debug registers %x: %v", got, err)
	}
	if err := task.SetDebugRegs([8]uint64{}); err != nil {
		t.Fatal(err)
	}
	if _, err := task.RSeq(); err != nil {
		t.Error(err)
	}
	if _, err := task.SeccompFilter(0); err == nil {
		t.Error("a filter where there is none")
	}
}

func TestSignals(t *testing.T) {
	task := halted(t, 0, sleeper())
	const blocked = 1<<(unix.SIGUSR1-1) | 1<<(50-1)
	if err := task.SetSigMask(blocked); err != nil {
		t.Fatal(err)
	}
	if got, err := task.SigMask(); err != nil || got != blocked {
		t.Errorf("mask %x: %v", got, err)
	}
	for range 70 {
		if err := unix.Tgkill(task.TID, task.TID, 50); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Kill(task.TID, unix.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	own, err := task.PeekSigInfo(false)
	if err != nil || len(own) != 70 || len(own[0]) != sys.SigInfoSize {
		t.Errorf("%d signals of the thread: %v", len(own), err)
	}
	shared, err := task.PeekSigInfo(true)
	if err != nil || len(shared) != 1 || binary.NativeEndian.Uint32(shared[0]) != uint32(unix.SIGUSR1) {
		t.Errorf("signals of the process %v: %v", shared, err)
	}
}

// TestEvents follows a shell that bears a child and then runs a program.
func TestEvents(t *testing.T) {
	cmd := exec.Command("sh", "-c", "read x; (exit 3) & wait; exec sleep 60")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	task := halted(t, TraceFork|TraceVfork|TraceClone|TraceExec, cmd)
	if _, err := stdin.Write([]byte("go on\n")); err != nil {
		t.Fatal(err)
	}
	st := next(t, task, 0)
	if st.Kind != Event || st.Event != unix.PTRACE_EVENT_FORK && st.Event != unix.PTRACE_EVENT_CLONE {
		t.Fatalf("stop %+v, want a birth", st)
	}
	tid, err := task.EventMsg()
	if err != nil {
		t.Fatal(err)
	}
	child := Attached(int(tid), task)
	if st, err := child.Wait(t.Context(), bound); err != nil || st.Kind != Interrupted {
		t.Fatalf("newborn's first stop %+v, %v", st, err)
	}
	if st := next(t, child, 0); st.Kind != Gone || !st.Exited || st.Status.ExitStatus() != 3 {
		t.Errorf("child's end %+v", st)
	}
	for st = next(t, task, 0); st.Kind == Signal; st = next(t, task, int(st.Signal)) {
		if st.Signal != unix.SIGCHLD {
			t.Fatalf("stop %+v", st)
		}
	}
	if st.Kind != Event || st.Event != unix.PTRACE_EVENT_EXEC {
		t.Errorf("stop %+v, want exec", st)
	}
	if st, err := task.Deliver(t.Context(), 0, bound); err != nil || st.Kind != Interrupted {
		t.Errorf("stop %+v, %v, want an interrupt", st, err)
	}
}

func TestGroupStop(t *testing.T) {
	cmd := sleeper()
	task := halted(t, 0, cmd)
	if err := cmd.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	st := next(t, task, 0)
	if st.Kind != Signal || st.Signal != unix.SIGSTOP {
		t.Fatalf("stop %+v, want SIGSTOP in hand", st)
	}
	if st = next(t, task, int(unix.SIGSTOP)); st.Kind != Group || !task.Stopped() {
		t.Fatalf("stop %+v, want a group stop", st)
	}
	if st, err := task.Deliver(t.Context(), 0, bound); err != nil || st.Kind != Group {
		t.Fatalf("stop %+v, %v, want a group stop", st, err)
	}
	if err := task.Detach(0); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(bound); ; runtime.Gosched() {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", task.TID))
		if err != nil || time.Now().After(end) {
			t.Fatalf("not stopped after detach: %s, %v", b, err)
		}
		if strings.Contains(string(b), ") T ") {
			return
		}
	}
}

func next(t *testing.T, task *Task, sig int) Stop {
	t.Helper()
	if err := task.Cont(sig); err != nil {
		t.Fatal(err)
	}
	st, err := task.Wait(t.Context(), bound)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func TestWaitIsBounded(t *testing.T) {
	task := halted(t, 0, sleeper())
	if err := task.Cont(0); err != nil {
		t.Fatal(err)
	}
	if _, err := task.Wait(t.Context(), time.Millisecond); !errors.Is(err, errs.ErrTimeout) {
		t.Errorf("got %v, want ErrTimeout", err)
	}
	if err := unix.Kill(task.TID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	st, err := task.Wait(t.Context(), bound)
	if err != nil || st.Kind != Gone || st.Signal != unix.SIGKILL {
		t.Errorf("stop %+v, %v", st, err)
	}
	if _, err := task.Wait(t.Context(), bound); !errors.Is(err, errs.ErrGone) {
		t.Errorf("got %v, want ErrGone", err)
	}
	if _, err := task.Regs(); !errors.Is(err, errs.ErrGone) {
		t.Errorf("got %v, want ErrGone", err)
	}
}
