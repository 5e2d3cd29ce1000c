package cr

import (
	"context"
	"log/slog"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/task"
)

func holdBack(ctx context.Context, pid int) *brake {
	return startBrake(ctx, &container{initPID: pid, calls: task.Calls{}}, slog.New(slog.DiscardHandler))
}

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
