package cr

import (
	"errors"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/cr/tracer"
)

// TestAwaitStop: a process is stopped, and its parent knows, when the last thread
// has stopped.
func TestAwaitStop(t *testing.T) {
	pid := start(t, waits).Process.Pid
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
