package cr

import (
	"runtime"
	"testing"
	"time"

	"github.com/stasis-cr/stasis/cr/tracer"
)

// TestReapLeavesStops: threads that stop while news of dead ones is taken are waited
// for by others.
func TestReapLeavesStops(t *testing.T) {
	pid := start(t, works).Process.Pid
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var tids []int
	for len(tids) < 2 { // it makes them when it has begun
		var err error
		if tids, err = threadsOf(pid); err != nil {
			t.Fatal(err)
		}
	}
	task, err := tracer.Seize(tids[1], 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = task.Detach(0) }() // else its end is news for us
	if err := task.Interrupt(); err != nil {
		t.Fatal(err)
	}
	until(t, pid, 't')
	reapThreads(pid)
	if stop, err := task.Wait(t.Context(), time.Second); err != nil || stop.Kind != tracer.Interrupted {
		t.Errorf("stop %+v: %v", stop, err)
	}
}
