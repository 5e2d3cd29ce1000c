package cr

import (
	"context"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/procfs"
	"github.com/stasis-cr/stasis/cr/task"
)

// The variable asProgram has this test program be another one until its input
// ends: one that waits, one that works meanwhile, or one that holds back the process
// whose number follows.
const (
	asProgram = "STASIS_TEST_PROGRAM"
	waits     = "waits"
	works     = "works"
	executes  = "executes"
	untilTime = "STASIS_TEST_UNTIL" // with it: seconds since 1970
	holds     = "holds "
)

func TestMain(m *testing.M) {
	program := os.Getenv(asProgram)
	switch program {
	case "":
		os.Exit(m.Run())
	case waits:
	case works:
		go func() {
			for {
			}
		}()
	case executes:
		go execute() // on another thread than the first
		select {}
	default:
		pid, err := strconv.Atoi(program[len(holds):])
		if err != nil {
			os.Exit(1)
		}
		b := holdBack(context.Background(), pid)
		go func() {
			<-b.ended // it has nobody left to hold
			os.Exit(0)
		}()
	}
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		os.Exit(1)
	}
}

func execute() {
	runtime.LockOSThread()
	if end, err := strconv.ParseInt(os.Getenv(untilTime), 10, 64); err != nil || time.Now().Unix() > end {
		os.Exit(1) // whoever began it has gone
	}
	err := unix.Exec("/proc/self/exe", os.Args, os.Environ())
	os.Exit(int(err.(unix.Errno)))
}

func holdBack(ctx context.Context, pid int) *brake {
	return startBrake(ctx, &container{initPID: pid, calls: task.Calls{}}, slog.New(slog.DiscardHandler))
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("missing: root, to trace processes")
	}
	t.Skip("missing: root, to trace processes")
}

// start runs this test program as another until the test ends.
func start(t *testing.T, program string) *exec.Cmd {
	t.Helper()
	needRoot(t)
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), asProgram+"="+program)
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

// until waits until a thread of a process is in a state, and returns it.
func until(t *testing.T, pid int, state byte) (tid int) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		tids, err := threadsOf(pid)
		if err != nil {
			t.Fatal(err)
		}
		for _, tid := range tids {
			if st, err := procfs.ReadStat(tid); err == nil && st.State == state {
				return tid
			}
		}
	}
	t.Fatalf("no thread of process %d is in state %c", pid, state)
	return 0
}

// free waits until a process is held by nobody and one of its threads runs.
func free(t *testing.T, pid int) {
	t.Helper()
	until(t, pid, 'R')
	tids, err := threadsOf(pid)
	if err != nil {
		t.Fatal(err)
	}
	for _, tid := range tids {
		if st, err := procfs.ReadStatus(tid); !vanished(err) && (err != nil || st.TracerPID != 0) {
			t.Errorf("thread %d is traced by %d: %v", tid, st.TracerPID, err)
		}
	}
}

const traced = 't'

// TestBrake holds a process again and again, and lets it go in the end.
func TestBrake(t *testing.T) {
	pid := start(t, works).Process.Pid
	b := holdBack(t.Context(), pid)
	for range 3 {
		until(t, pid, traced)
		until(t, pid, 'R')
	}
	for range 10 {
		b.harder()
	}
	if got := time.Duration(b.free.Load()); got != brakeLeast {
		t.Errorf("it runs for %v between two slices, want %v", got, brakeLeast)
	}
	until(t, pid, traced)
	for range 2 {
		if held, err := b.end(); err != nil || held <= 0 {
			t.Errorf("held for %v: %v", held, err)
		}
	}
	free(t, pid)
	if held, err := (*brake)(nil).end(); held != 0 || err != nil {
		t.Errorf("no brake: %v, %v", held, err)
	}
}

// TestBrakeKilled: whoever holds a process may die at any moment.
func TestBrakeKilled(t *testing.T) {
	pid := start(t, works).Process.Pid
	holder := start(t, holds+strconv.Itoa(pid))
	until(t, pid, traced)
	if err := holder.Process.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := holder.Wait(); err == nil {
		t.Error("the holder was not killed")
	}
	free(t, pid)
}

// TestBrakeExec holds threads that take the number of another, their leader's, as
// they execute a program.
func TestBrakeExec(t *testing.T) {
	pid := startExecutes(t)
	b := holdBack(t.Context(), pid)
	t.Cleanup(func() {
		if _, err := b.end(); err != nil {
			t.Error(err)
		}
	})
	for range 50 {
		until(t, pid, traced)
		until(t, pid, 'R')
	}
	if _, err := b.end(); err == nil { // else see above
		free(t, pid)
	}
}

// TestBrakeGone: the process ends while it is held.
func TestBrakeGone(t *testing.T) {
	cmd := start(t, works)
	holder := start(t, holds+strconv.Itoa(cmd.Process.Pid))
	until(t, cmd.Process.Pid, traced)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the process was not killed")
	}
	if err := holder.Wait(); err != nil {
		t.Errorf("who held it: %v", err)
	}
}
