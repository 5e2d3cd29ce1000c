package cr

import (
	"context"
	"errors"
	"log/slog"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/opencontainers/cgroups"

	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/cr/procfs"
	"github.com/stasis-cr/stasis/cr/sys"
)

// A brake holds back a container that writes its memory faster than it can be
// copied: its running threads are stopped most of the time, in slices of
// milliseconds. What sleeps is left asleep, so that no timeout begins anew. If we die,
// everything runs on, as after any ptrace stop.
type brake struct {
	free  atomic.Int64  // nanoseconds that it runs between two slices
	off   chan struct{} // closed: it is to end
	ended chan struct{} // closed: it has
	held  time.Duration // that the container stood still, when it has ended
	err   error         // likewise
}

// The slices of a brake, and what it is good for.
const (
	brakeHold  = 12 * time.Millisecond  // the container stands still
	brakeFree  = 4 * time.Millisecond   // it runs, at first
	brakeLeast = time.Millisecond       // it runs in any case
	brakeLook  = 500 * time.Microsecond // how often it is looked which threads have woken up

	brakeHelps = 3 // times as much as is copied meanwhile may be written without it
)

// startBrake begins to hold back a running container. The caller calls end.
func startBrake(ctx context.Context, c *container, log *slog.Logger) *brake {
	b := &brake{off: make(chan struct{}), ended: make(chan struct{})}
	b.free.Store(int64(brakeFree))
	go func() {
		defer close(b.ended)
		runtime.LockOSThread() // never unlocked: the kernel lets go of what the thread holds when it ends
		for b.err == nil && !closed(b.off) {
			b.err = b.slice(ctx, c, log)
			b.rest(time.Duration(b.free.Load()))
		}
	}()
	return b
}

// harder lets the container run half as long from now on.
func (b *brake) harder() { b.free.Store(max(b.free.Load()/2, int64(brakeLeast))) }

// end lets the container run and says for how long it has been held. It is safe on
// nil, and to call again.
func (b *brake) end() (held time.Duration, err error) {
	if b == nil {
		return 0, nil
	}
	if !closed(b.off) {
		close(b.off)
	}
	<-b.ended
	return b.held, b.err
}

// rest waits, unless the brake is to end.
func (b *brake) rest(d time.Duration) {
	select {
	case <-b.off:
	case <-time.After(d):
	}
}

// slice holds the threads that run, and those that wake up meanwhile.
func (b *brake) slice(ctx context.Context, c *container, log *slog.Logger) (err error) {
	f := &frozen{c: c, was: cgroups.Thawed, since: time.Now(), attached: map[int]*thread{}, calm: hurry(), log: log}
	f.members = func() ([]int, error) { return family(c.initPID) }
	defer func() {
		err = errors.Join(err, f.release(context.WithoutCancel(ctx)))
		b.held += time.Since(f.since)
	}()
	over := func() bool { return closed(b.off) || time.Since(f.since) >= brakeHold }
	for !over() {
		if err := f.stopRunning(ctx, over); err != nil {
			return err
		}
		sys.Nap(brakeLook)
	}
	return nil
}

// stopRunning stops the threads that run, as far as it gets before it is over; one
// that takes long is waited for later.
func (f *frozen) stopRunning(ctx context.Context, over func() bool) error {
	pids, err := f.members()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		tids, err := threadsOf(pid)
		if err != nil && !vanished(err) {
			return err
		}
		for _, tid := range tids {
			if over() {
				return nil
			}
			if st, err := procfs.ReadStat(tid); f.attached[tid] != nil || err != nil || st.State != 'R' {
				continue
			}
			if _, err := f.seize(pid, tid); err != nil {
				return err
			}
		}
	}
	for _, t := range f.attached { // also those that rest: they may be killed
		if t.gone {
			continue
		}
		if err := f.stop(ctx, t, 0); err != nil && !errors.Is(err, errs.ErrGone) {
			return err
		}
	}
	return nil
}
