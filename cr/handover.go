package cr

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/errs"
)

// Held is a container that is handed over: its checkpoint is complete, and it
// stands still until it is known whether it goes on elsewhere. The cgroup freezer
// holds it through the death of whoever hands it over.
type Held struct {
	c     *container
	pidfd int
	since time.Time
}

// Hold names a running container that will be handed over, for who is not its
// engine: nothing is done to it yet. The caller closes what it returns.
func Hold(ctx context.Context, o CheckpointOptions) (*Held, error) {
	c, err := findContainer(ctx, &o)
	if err != nil {
		return nil, err
	}
	return hold(c, time.Now())
}

func hold(c *container, since time.Time) (*Held, error) {
	was, err := idOf(c.initPID)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", c.id, err)
	}
	h := &Held{c: c, since: since}
	if h.pidfd, err = unix.PidfdOpen(c.initPID, 0); err != nil {
		return nil, fmt.Errorf("pidfd of init %d: %w", c.initPID, err)
	}
	if !was.alive() { // the number may be another's since
		return nil, errors.Join(fmt.Errorf("container %s: %w", c.id, errs.ErrGone), h.Close())
	}
	return h, nil
}

// Close releases the process. The container stays as it is.
func (h *Held) Close() error { return unix.Close(h.pidfd) }

// Since is when the container began to stand still.
func (h *Held) Since() time.Time { return h.since }

// Freeze lets the cgroup freezer hold the container, whoever dies.
func (h *Held) Freeze() error {
	if err := h.c.cgroup.Freeze(cgroups.Frozen); err != nil {
		return fmt.Errorf("container %s: freeze: %w", h.c.id, err)
	}
	return nil
}

// Thaw takes Freeze back. If nothing else holds the container it goes on.
func (h *Held) Thaw() error {
	if err := h.c.cgroup.Freeze(cgroups.Thawed); err != nil && !h.gone() {
		return fmt.Errorf("container %s: thaw: %w", h.c.id, err)
	}
	return nil
}

// gone says whether init has ended.
func (h *Held) gone() bool {
	fds := []unix.PollFd{{Fd: int32(h.pidfd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n == 1
}

// End ends a container that Freeze holds, and removes the OCI runtime's record of
// it, without letting it run. It is no error that it has ended.
func (h *Held) End(ctx context.Context) error {
	pids, err := h.c.cgroup.GetAllPids()
	if err != nil && !h.gone() {
		return fmt.Errorf("container %s: processes: %w", h.c.id, err)
	}
	for _, pid := range pids { // before the thaw: none of them is to run again
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("container %s: kill process %d: %w", h.c.id, pid, err)
		}
	}
	if err := unix.PidfdSendSignal(h.pidfd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("container %s: kill init: %w", h.c.id, err)
	}
	if err := h.Thaw(); err != nil {
		return err
	}
	if err := h.awaitEnd(ctx); err != nil {
		return err
	}
	if _, err := h.c.run(ctx, "delete", "--force", h.c.id); err != nil {
		return fmt.Errorf("the container has ended, but: %w", err)
	}
	return nil
}

// awaitEnd waits until init and everything in its cgroup have ended.
func (h *Held) awaitEnd(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, freezeBound)
	defer cancel()
	for {
		if left, err := h.c.cgroup.GetAllPids(); h.gone() && (err != nil || len(left) == 0) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("container %s did not end within %v of SIGKILL: %w", h.c.id, freezeBound, errs.ErrTimeout)
		case <-time.After(time.Millisecond):
		}
	}
}

// handOver asks whoever is to have the container. An error says that it is to go
// on here.
func (s *still) handOver(ctx context.Context, f *frozen) (err error) {
	if s.o.Handover == nil {
		return nil
	}
	h, err := hold(s.c, f.since)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.Close()) }()
	return s.o.Handover(ctx, h)
}
