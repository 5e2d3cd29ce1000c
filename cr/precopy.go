package cr

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/fault"
	"github.com/stasis-cr/stasis/cr/mem"
	"github.com/stasis-cr/stasis/cr/procfs"
)

// Bounds of the pre-copy.
const (
	precopyLeast  = 16 << 20 // a container with less is copied sooner than it is followed
	precopySpace  = 4 << 20  // a process with less is left for the freeze
	precopyRest   = 1 << 20  // what may be left: it is copied in less than a millisecond
	precopyMost   = 8 << 20  // what may be left to a container that is not held back
	precopyRounds = 6
	precopySample = 20 * time.Millisecond
	precopySpeed  = 128 << 20 // bytes for which another millisecond of it is worth while
)

// precopy saves the memory of a container while it runs, so that little is left
// to copy while it stands still. Nil: everything is left.
type precopy struct {
	spaces  map[int]*space // by host pid
	sharing bool           // there are several processes
	size    int64          // bytes of private memory that are followed
	brake   *brake         // holds the container back; nil: it runs freely
	held    time.Duration  // that the container has been held back
	sampled int64          // bytes that were written in a moment; see sampleTime
	closing chan error     // of those that are closed behind the caller's back
	log     *slog.Logger
}

// space is the address space of one process that is followed.
type space struct {
	tracker *mem.Tracker
	size    int64 // bytes
	based   bool  // what was not written since it was asked last is in the parent
}

// startPrecopy saves what it pays to save of a running container's memory into
// store, and takes over what has been followed since the parent. The caller closes
// what it returns, after the container goes on.
func startPrecopy(ctx context.Context, c *container, o *CheckpointOptions, before *parent, store *mem.Store, log *slog.Logger) (_ *precopy, err error) {
	p := &precopy{spaces: map[int]*space{}, log: log}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
		}
	}()
	was, err := c.cgroup.GetFreezerState()
	if err != nil {
		return p, fmt.Errorf("freezer state: %w", err)
	}
	if err := p.adopt(c, before); err != nil {
		return p, err
	}
	family, err := family(c.initPID)
	if err != nil {
		return p, err
	}
	p.sharing = len(family) > 1
	if was != cgroups.Frozen { // else it stands still already
		if err := p.followAll(ctx, c, o, family); err != nil {
			return p, err
		}
	}
	for _, s := range p.spaces {
		if o.follows() {
			s.tracker.GoOn()
		}
	}
	if err := fault.Point("precopy-followed"); err != nil || o.NoPrecopy || was == cgroups.Frozen || len(p.spaces) == 0 {
		return p, err
	}
	return p, p.run(ctx, c, store, o)
}

// adopt takes over the trackers that a keeper has. From here on the keeper is
// gone: what we ask the trackers, nobody else learns.
func (p *precopy) adopt(c *container, before *parent) error {
	if c.kept == nil {
		return nil
	}
	for i := range c.kept.Spaces {
		k := &c.kept.Spaces[i]
		st, err := procfs.ReadStatus(k.Proc.PID)
		if err != nil || !k.Proc.alive() {
			continue // it has ended
		}
		uffd, err := c.kept.take(k)
		if err != nil {
			return err
		}
		t, err := mem.AdoptTracker(k.Proc.PID, uffd, k.Watched, before.extents(&st))
		if err != nil {
			return err
		}
		p.spaces[k.Proc.PID] = &space{tracker: t, based: before != nil}
	}
	if err := c.kept.end(c.keepFile); err != nil {
		return fmt.Errorf("keeper of the trackers: %w", err)
	}
	return fault.Point("trackers-taken")
}

// run copies in rounds until what is left is little. A container that writes faster
// than it is copied is held back for the last of them.
func (p *precopy) run(ctx context.Context, c *container, store *mem.Store, o *CheckpointOptions) error {
	stop := o.watch(ctx, "memory, while the container runs", func() (int64, int64) { return store.Size(), p.size })
	defer stop()
	if err := p.changed(ctx, store); err != nil {
		return err
	}
	worth, err := p.first(ctx, c, store)
	if err != nil || !worth {
		return err
	}
	left, err := p.rounds(ctx, store)
	if err != nil || p.brake != nil || left <= precopyMost {
		return err
	}
	p.holdBack(ctx, c)
	_, err = p.rounds(ctx, store)
	return err
}

// rounds copies what has been written since until little of it is left, or another
// round would not pay. It returns how many bytes are left.
func (p *precopy) rounds(ctx context.Context, store *mem.Store) (left int64, err error) {
	if left, err = p.written(every); err != nil {
		return 0, err
	}
	n, twice := p.size, int64(0)
	for round := 1; round < precopyRounds; round++ {
		if err := fault.Point("precopy-round"); err != nil {
			return 0, err
		}
		if twice += left; left <= precopyRest || !p.pays(n, left) || twice > p.size { // no more than all of it again
			break
		}
		begin := time.Now()
		if n, err = p.pass(ctx, store, every, (*mem.Tracker).Pass); err != nil {
			return 0, err
		}
		if left, err = p.written(every); err != nil {
			return 0, err
		}
		p.log.Info("copied while running", slog.Int("round", round), slog.Duration("took", time.Since(begin)),
			slog.Int64("bytes", n), slog.Int64("written_since", left), slog.Bool("held_back", p.brake != nil))
		if p.brake != nil && left > n/4 {
			p.brake.harder()
		}
	}
	return left, nil
}

// pays says whether it pays to copy what is left of n bytes that were copied. There
// is another way for a container that runs freely, unless that is little anyway: then
// it must shrink to a quarter, and so it won't if as much is written in a moment.
func (p *precopy) pays(n, left int64) bool {
	switch {
	case p.brake != nil:
		return left < n/4*3
	case left <= precopyMost:
		return left <= n/2
	}
	return left <= n/4 && p.sampled < left/4
}

// holdBack lets the container run only now and then. It is safe to call again.
func (p *precopy) holdBack(ctx context.Context, c *container) {
	if p.brake == nil {
		p.brake = startBrake(ctx, c, p.log)
	}
}

// letRun ends what holds the container back. It is safe on nil, and to call again.
func (p *precopy) letRun() {
	if p == nil || p.brake == nil {
		return
	}
	held, err := p.brake.end()
	p.held += held
	p.brake = nil
	if err != nil { // if it matters, the freeze meets it, too
		p.log.Warn("could not be held back", slog.Any("err", err))
	}
}

// changed saves what was written since the parent.
func (p *precopy) changed(ctx context.Context, store *mem.Store) error {
	based := func(s *space) bool { return s.based }
	n, err := p.pass(ctx, store, based, (*mem.Tracker).Pass)
	p.size += n
	return err
}

// sampleTime is how long it is watched what is written: a small part of the time
// that it takes to copy so many bytes.
func sampleTime(size int64) time.Duration {
	return min(time.Millisecond+time.Duration(size/precopySpeed)*time.Millisecond, precopySample)
}

// first saves what is not written all the time. If most of the memory has been
// written before it was copied, it gives up, or holds the container back where that
// is likely to help.
func (p *precopy) first(ctx context.Context, c *container, store *mem.Store) (worth bool, err error) {
	fresh := func(s *space) bool { return !s.based }
	size := int64(0)
	for _, s := range p.spaces {
		if fresh(s) {
			size += s.size
		}
	}
	if size == 0 {
		return true, nil
	}
	select {
	case <-ctx.Done():
		return false, context.Cause(ctx)
	case <-time.After(sampleTime(size)): // what is written by then is likely to be written again
	}
	if p.sampled, err = p.written(fresh); err != nil {
		return false, err
	}
	errHot := errors.New("most of the memory is written all the time")
	before := int64(0) // copied of other spaces
	last := struct{ copied, written int64 }{0, p.sampled}
	_, err = p.pass(ctx, store, fresh, func(t *mem.Tracker, s *mem.Saver, sharing bool) (int64, error) {
		n, err := t.First(s, sharing, func(copied int64) error {
			copied += before
			written, err := p.written(fresh)
			if err != nil {
				return err
			}
			more, news := copied-last.copied, written-last.written
			last.copied, last.written = copied, written
			switch {
			case written > size/2 && copied < size/4 && p.brake == nil:
				return errHot
			case news > brakeHelps*more:
			case written+news*(size-copied)/more > size/4: // in the end, if it goes on so
				p.holdBack(ctx, c)
			}
			return nil
		})
		before += n
		return n, err
	})
	if errors.Is(err, errHot) {
		p.log.Info("the memory is copied while the container stands still", slog.String("why", errHot.Error()))
		return false, nil
	}
	return true, err
}

func every(*space) bool { return true }

// pass lets the trackers of some spaces hand over pages and waits until they are
// saved.
func (p *precopy) pass(ctx context.Context, store *mem.Store, of func(*space) bool, hand func(*mem.Tracker, *mem.Saver, bool) (int64, error)) (int64, error) {
	saver := mem.NewSaver(ctx, store, mem.SaverOptions{Background: p.brake == nil})
	var bytes int64
	err := p.each(func(s *space) error {
		if !of(s) {
			return nil
		}
		n, err := hand(s.tracker, saver, p.sharing)
		bytes += n
		return err
	})
	if e := saver.Wait(); e != nil {
		return bytes, errors.Join(e, err)
	}
	for _, s := range p.spaces {
		if of(s) {
			s.tracker.Passed()
		}
	}
	return bytes, err
}

// written is how many bytes of some spaces have been written since they were
// protected.
func (p *precopy) written(of func(*space) bool) (bytes int64, err error) {
	err = p.each(func(s *space) error {
		if !of(s) {
			return nil
		}
		n, err := s.tracker.Written()
		bytes += n
		return err
	})
	return bytes, err
}

// each calls f for every space until one fails. Those whose memory has gone are
// forgotten.
func (p *precopy) each(f func(*space) error) error {
	for pid, s := range p.spaces {
		err := f(s)
		if errors.Is(err, unix.ESRCH) {
			delete(p.spaces, pid)
			err = s.tracker.Close()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// tracker is the one that has followed a process; nil: none has.
func (p *precopy) tracker(pid int) *mem.Tracker {
	if s := p.spaces[pid]; s != nil {
		return s.tracker
	}
	return nil
}

// close ends the following. It is safe on nil, and to call again.
func (p *precopy) close() error {
	if p == nil {
		return nil
	}
	p.letRun()
	var all error
	for _, s := range p.spaces {
		all = errors.Join(all, s.tracker.Close())
	}
	clear(p.spaces)
	if p.closing != nil {
		all = errors.Join(all, <-p.closing)
		p.closing = nil
	}
	return all
}

// closeBehind begins to end the following while there is other work to do. The
// container runs; close waits for the end.
func (p *precopy) closeBehind() {
	spaces := p.spaces
	p.spaces, p.closing = map[int]*space{}, make(chan error, 1)
	go func() {
		var all error
		for _, s := range spaces {
			all = errors.Join(all, s.tracker.Close())
		}
		p.closing <- all
	}()
}
