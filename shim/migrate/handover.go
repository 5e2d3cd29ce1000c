package migrate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/stasis-cr/stasis/cr"
	"github.com/stasis-cr/stasis/cr/fault"
)

// final saves the rest while the container stands still, and hands it over.
func (m *source) final(ctx context.Context) error {
	e := m.engine(ctx, roundName(-1), m.parent())
	e.Handover = m.handOver
	m.report(Progress{Phase: "stopped"})
	stats, err := cr.Checkpoint(ctx, e)
	if m.runs {
		m.result.Sent += stats.PagesBytes
		return m.elsewhere(err)
	}
	return err
}

// elsewhere says that an error is not about the container.
func (m *source) elsewhere(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("the container runs on %s, but here: %w", m.o.To, err)
}

// Bounds of how long the container stands still for somebody who does not answer.
const (
	readyTime = time.Minute      // for the other side to make it
	goTime    = 15 * time.Second // to let it go; then it is asked on another connection
)

// handOver gives the container away: see the package's documentation. An error
// lets it go on here.
func (m *source) handOver(ctx context.Context, h *cr.Held) error {
	if err := m.w.within(readyTime); err != nil {
		return err
	}
	if err := m.ready(ctx); err != nil {
		return err
	}
	if err := m.w.within(goTime); err != nil {
		return err
	}
	if err := m.guard.hold(); err != nil {
		return err
	}
	if err := fault.Point("migrate-ready"); err != nil {
		return err
	}
	if err := h.Freeze(); err != nil {
		return errors.Join(err, h.Thaw())
	}
	if err := fault.Point("migrate-held"); err != nil {
		return errors.Join(err, h.Thaw())
	}
	answer, err := m.w.ask(message{Kind: kindGo}, kindRunning)
	if e := fault.Point("migrate-went"); e != nil { // as if the answer had been lost
		err = fmt.Errorf("%w: %w", errLost, e)
	}
	if errors.Is(err, errLost) || errors.Is(err, errProtocol) {
		m.log.Warn("the other side must be asked again", slog.Any("err", err))
		m.report(Progress{Phase: "paused, until the other machine says whether it runs there"})
		answer, err = askOn(ctx, m.o.To, m.o.Keys, m.id)
		if err != nil {
			return errors.Join(ErrHeld, err) // nothing lets it go on
		}
		if answer.Kind == kindDropped {
			err = &refusal{answer.Error}
		}
	}
	if err != nil {
		return errors.Join(err, h.Thaw())
	}
	if err := m.w.within(0); err != nil {
		m.log.Warn("the connection is of no use any more", slog.Any("err", err))
	}
	m.runs = true
	m.result.PID, m.result.Downtime = answer.PID, time.Since(h.Since())
	m.report(Progress{Phase: "running"})
	return nil
}

// ready brings the other side to where it waits for the word.
func (m *source) ready(ctx context.Context) error {
	if err := fault.Point("migrate-stopped"); err != nil {
		return err
	}
	if err := m.send(ctx, kindRootfs, "files", m.src.WriteRootfs); err != nil {
		return err
	}
	s, err := m.guard.serve(filepath.Join(m.dir, roundName(-1)))
	if err != nil {
		return err
	}
	m.last.addr = s.addr
	m.standIn(ctx)
	ready, err := m.w.ask(message{Kind: kindFinal, Addr: s.addr, State: s.state}, kindReady)
	if err != nil {
		return err
	}
	m.log.Info("ready over there", slog.Duration("took", ready.Took))
	return nil
}

// after waits until nothing is needed of us, and removes the container, which has
// ended whatever else happens.
func (m *source) after(ctx context.Context) error {
	err := fault.Point("migrate-ended")
	if m.o.Lazy {
		m.report(Progress{Phase: "rest of the memory"})
		if e := m.filled(ctx); e != nil {
			err = errors.Join(err, fmt.Errorf("not all of its memory is known to be there: %w", e))
		}
	}
	if !m.o.Keep {
		err = errors.Join(err, m.src.Remove(ctx))
	}
	return m.elsewhere(err)
}

// standIn serves the last checkpoint if the guard, which does it, dies; until end.
func (m *source) standIn(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() {
		select {
		case <-m.guard.ended:
		case <-ctx.Done():
			ended <- nil
			return
		}
		m.log.Warn("the guard has died: memory is served from here")
		s, _, err := servePages(ctx, filepath.Join(m.dir, roundName(-1)), m.last.addr, m.o.Keys, m.log)
		if err == nil {
			<-ctx.Done()
			err = s.stop()
		}
		ended <- err
	}()
	m.relieve = func() error {
		cancel()
		return <-ended
	}
}

// filled waits until the container's memory is over there.
func (m *source) filled(ctx context.Context) error {
	_, err := m.w.want(kindFilled)
	if !errors.Is(err, errLost) && !errors.Is(err, errProtocol) {
		return err
	}
	return awaitFilled(ctx, m.o.To, m.o.Keys, m.id)
}
