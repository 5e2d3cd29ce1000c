package migrate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"
)

// mostSessions is how many migrations and questions are served at the same time.
const mostSessions = 32

// ListenOptions are those of the side that containers come to.
type ListenOptions struct {
	Session SessionOptions
	// Start runs a session with a connection, in a process of its own, and waits for
	// its end. The file is closed when it returns.
	Start func(ctx context.Context, conn *os.File) error
}

// Listen takes containers until ctx ends: then it returns nil. Sessions live on.
// What sessions that died have left it settles: when it begins, and when it sees
// one die.
func Listen(ctx context.Context, l net.Listener, o ListenOptions) error {
	defer context.AfterFunc(ctx, func() { _ = l.Close() })() //nolint:errcheck // nothing was written
	log := o.Session.Log
	if err := os.MkdirAll(o.Session.Dir, 0o700); err != nil {
		return err
	}
	dead, err := sweep(o.Session.Dir, time.Now())
	if err != nil {
		return err
	}
	var work sync.WaitGroup
	defer work.Wait()
	for _, id := range dead {
		work.Go(func() { o.clean(ctx, id) })
	}
	slots := make(chan struct{}, mostSessions)
	for {
		c, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("migration: %w", err)
		case err != nil: // no descriptor is free, say: that passes
			log.Warn("a client could not be taken", slog.Any("err", err))
			select {
			case <-ctx.Done():
			case <-time.After(askPause):
			}
			continue
		}
		select {
		case slots <- struct{}{}:
			go func() {
				defer func() { <-slots }()
				if err := o.hand(ctx, c); err != nil {
					log.Warn("a session has failed", slog.String("from", c.RemoteAddr().String()), slog.Any("err", err))
					o.cleanAll(ctx)
				}
			}()
		default:
			log.Warn("too many clients", slog.String("from", c.RemoteAddr().String()))
			_ = c.Close() //nolint:errcheck // nothing was written
		}
	}
}

// hand gives a connection to a session.
func (o *ListenOptions) hand(ctx context.Context, c net.Conn) error {
	t, ok := c.(*net.TCPConn)
	if !ok {
		return errors.Join(fmt.Errorf("a connection is a %T", c), c.Close())
	}
	f, err := t.File()
	if err = errors.Join(err, c.Close()); err != nil {
		return err
	}
	return errors.Join(o.Start(ctx, f), f.Close())
}

// cleanAll settles what sessions that died have left.
func (o *ListenOptions) cleanAll(ctx context.Context) {
	dead, err := sweep(o.Session.Dir, time.Now())
	if err != nil {
		o.Session.Log.Error("earlier migrations could not be looked for", slog.Any("err", err))
	}
	for _, id := range dead {
		o.clean(ctx, id)
	}
}

// clean settles a migration when its session has ended, which it waits for.
func (o *ListenOptions) clean(ctx context.Context, id string) {
	if err := clean(ctx, id, o.Session); err != nil && ctx.Err() == nil {
		o.Session.Log.Error("an earlier migration could not be settled", slog.String("migration", id), slog.Any("err", err))
	}
}

// clean does what a session would if somebody asked what became of a migration.
func clean(ctx context.Context, id string, o SessionOptions) (err error) {
	s := &session{o: o, log: o.Log.With(slog.String("migration", id))}
	if s.file, err = findFile(ctx, o.Dir, id); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.file.close()) }()
	if s.file.lock == nil {
		return nil
	}
	if s.target, err = o.Target(ctx, id); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.target.Close()) }()
	s.target.Attach(s.file.entry.Container)
	if err := s.settle(ctx); err != nil || !s.ran() {
		return err
	}
	return s.finish(ctx, false)
}
