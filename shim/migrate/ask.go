package migrate

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/stasis-cr/stasis/cr/pageserver"
)

// Bounds of asking what became of a migration.
const (
	askPause = 200 * time.Millisecond
	askLast  = 10 * time.Second // for who is told to give up
)

// askOn asks the other side what became of a migration, until it answers or ctx
// has ended for a while. The answer is running or dropped, and stays true.
func askOn(ctx context.Context, to string, k pageserver.Keys, id string) (message, error) {
	return asking(ctx, func(ctx context.Context) (message, error) {
		m, w, err := resolve(ctx, to, k, id)
		if err != nil {
			return m, err
		}
		return m, w.close()
	})
}

// awaitFilled asks the other side until all of the container's memory is there.
func awaitFilled(ctx context.Context, to string, k pageserver.Keys, id string) error {
	_, err := asking(ctx, func(ctx context.Context) (message, error) {
		m, w, err := resolve(ctx, to, k, id)
		if err != nil || m.Kind == kindDropped {
			return m, err
		}
		defer w.until(ctx)()
		m, err = w.want(kindFilled)
		return m, errors.Join(err, ignoreLost(w.close()))
	})
	return err
}

// asking calls ask until it succeeds, or ctx has ended for a while.
func asking(ctx context.Context, ask func(context.Context) (message, error)) (message, error) {
	last, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(askLast, cancel) })()
	for {
		m, err := ask(last)
		if err == nil {
			return m, nil
		}
		select {
		case <-last.Done():
			return m, fmt.Errorf("nobody says what became of the container: %w", err)
		case <-time.After(askPause):
		}
	}
}

// resolve asks once. The caller closes what it returns, on which more may come.
func resolve(ctx context.Context, to string, k pageserver.Keys, id string) (message, *wire, error) {
	w, err := dial(ctx, to, k)
	if err != nil {
		return message{}, nil, err
	}
	stop := w.until(ctx)
	defer stop()
	err = w.send(message{Kind: kindResolve, Version: Version, ID: id})
	var m message
	if err == nil {
		m, err = w.recv()
	}
	if err == nil && m.Kind != kindRunning && m.Kind != kindDropped {
		err = errProtocol
	}
	if err != nil {
		return m, nil, errors.Join(err, ignoreLost(w.close()))
	}
	return m, w, nil
}
