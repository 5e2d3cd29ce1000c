package cr

import (
	"log/slog"
	"runtime"
	"testing"

	"github.com/stasis-cr/stasis/cr/task"
)

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
