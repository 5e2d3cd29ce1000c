package cr

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/task"
)

// startExecutes runs a process of several threads of which one executes its program
// again and again. It is no child of ours, as a parent's wait says something else.
func startExecutes(t *testing.T) (pid int) {
	t.Helper()
	needRoot(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-c", `"$0" >/dev/null 2>&1 & echo $!`, self)
	end := time.Now().Add(time.Minute).Unix()
	cmd.Env = append(os.Environ(), asProgram+"="+executes, untilTime+"="+strconv.FormatInt(end, 10))
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscan(string(out), &pid); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			t.Error(err)
		}
	})
	return pid
}

// TestFreezeExec: the thread that executes a program ends the others, and waits until
// whoever traces them knows of it.
func TestFreezeExec(t *testing.T) {
	pid := startExecutes(t)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	c := &container{initPID: pid, calls: task.Calls{}}
	for range 50 {
		until(t, pid, 'R')
		f, err := freezeOne(t.Context(), c, pid, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		if err := f.release(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	free(t, pid)
}
