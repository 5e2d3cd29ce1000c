package cr

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/cr/tracer"
)

// untilClosed has this test program run, with the threads that Go gives it, until
// its input ends.
const untilClosed = "STASIS_TEST_UNTIL_CLOSED"

func TestMain(m *testing.M) {
	if os.Getenv(untilClosed) == "" {
		os.Exit(m.Run())
	}
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		os.Exit(1)
	}
}

// TestAwaitStop: a process is stopped, and its parent knows, when the last thread
// has stopped.
func TestAwaitStop(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("missing: root, to trace processes")
		}
		t.Skip("missing: root, to trace processes")
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), untilClosed+"=1")
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	tids, err := threadsOf(pid)
	for err == nil && len(tids) < 2 {
		tids, err = threadsOf(pid)
	}
	if err != nil {
		t.Fatal(err)
	}

	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	late, err := tracer.Seize(tids[1], 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := late.Halt(t.Context(), 10*time.Second); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := awaitStop(pid, 20*time.Millisecond); !errors.Is(err, errs.ErrTimeout) {
		t.Fatalf("a thread has not stopped yet: %v", err)
	}
	if err := late.Detach(0); err != nil {
		t.Fatal(err)
	}
	if err := awaitStop(pid, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	var status unix.WaitStatus
	if got, err := unix.Wait4(pid, &status, unix.WUNTRACED|unix.WNOHANG, nil); got != pid || !status.Stopped() {
		t.Errorf("the parent waits for process %d, status %#x: %v", got, status, err)
	}
}
