package pageserver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"
)

// Remote says where a checkpoint is served, and who we are.
type Remote struct {
	Addr string // HOST:PORT; the server's certificate is for HOST
	Keys
	Patience time.Duration // how long a read goes on without an answer; 0: DefaultPatience
	State    []byte        // sha256 of state.img; empty: that of the first server we meet
}

// DefaultPatience is enough for a server to be started again.
const DefaultPatience = 2 * time.Minute

// Bounds of what we do about a server that does not answer.
const (
	mostConns = 8
	dialTime  = 10 * time.Second
	firstWait = 20 * time.Millisecond
	mostWait  = 2 * time.Second
)

// Client reads from a server. It is safe for concurrent use.
type Client struct {
	remote Remote
	slots  chan struct{} // one for each read under way

	mu    sync.Mutex
	idle  []*conn
	state []byte // digest
	size  uint64 // of state.img
}

// conn is a connection after the greeting.
type conn struct{ net.Conn }

// NewClient makes a client. It connects when something is read; the caller
// closes it.
func NewClient(r Remote) *Client {
	if r.Patience <= 0 {
		r.Patience = DefaultPatience
	}
	return &Client{remote: r, slots: make(chan struct{}, mostConns), state: slices.Clone(r.State)}
}

// Remote is what the client was made of, with the checkpoint that it has met.
func (c *Client) Remote() Remote {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.remote
	r.State = slices.Clone(c.state)
	return r
}

// Close closes the connections that nobody uses.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, x := range c.idle {
		_ = x.Close() //nolint:errcheck // nothing is lost
	}
	c.idle = nil
	return nil
}

// readerAt is a function that is an io.ReaderAt.
type readerAt func(b []byte, off int64) (int, error)

// ReadAt implements io.ReaderAt.
func (f readerAt) ReadAt(b []byte, off int64) (int, error) { return f(b, off) }

// Store is page store i of the checkpoint, as chunks number them. Reads end with
// ctx.
func (c *Client) Store(ctx context.Context, i int) io.ReaderAt {
	return c.object(ctx, kindStore, uint32(i))
}

func (c *Client) object(ctx context.Context, k kind, index uint32) io.ReaderAt {
	return readerAt(func(b []byte, off int64) (int, error) {
		for done := 0; done < len(b); {
			part := b[done:min(done+mostRead, len(b))]
			q := request{k, index, uint64(off) + uint64(done), uint32(len(part))}
			if err := c.read(ctx, q, part); err != nil {
				return done, err
			}
			done += len(part)
		}
		return len(b), nil
	})
}

// State says what the server's state.img is.
func (c *Client) State(ctx context.Context) (digest []byte, size uint64, err error) {
	err = c.persist(ctx, func() error {
		x, _, err := c.take(ctx)
		if err == nil {
			c.give(x)
		}
		return err
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state, c.size, err
}

// read fills b with what q asks for.
func (c *Client) read(ctx context.Context, q request, b []byte) error {
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return c.persist(ctx, func() error { return c.try(ctx, q, b) })
}

// persist calls f until it succeeds, meets an error that stays, or has failed
// for too long.
func (c *Client) persist(ctx context.Context, f func() error) error {
	begin := time.Now()
	for wait := firstWait; ; wait = min(2*wait, mostWait) {
		err := f()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if _, final := errors.AsType[*finalError](err); final || Refused(err) {
			return fmt.Errorf("page server %s: %w", c.remote.Addr, err)
		}
		if took := time.Since(begin); took+wait > c.remote.Patience {
			return fmt.Errorf("page server %s: given up after %s: %w", c.remote.Addr, took.Round(time.Millisecond), err)
		}
		pause(ctx, wait)
	}
}

// try makes one attempt, and another at once if a connection that lay idle turns
// out to be broken. The others that lay idle are then as well, most likely.
func (c *Client) try(ctx context.Context, q request, b []byte) error {
	for {
		x, fresh, err := c.take(ctx)
		if err != nil {
			return err
		}
		if err = x.ask(ctx, q, b, c.remote.Patience); err == nil {
			c.give(x)
			return nil
		}
		_ = errors.Join(x.Close(), c.Close()) //nolint:errcheck // they are of no use
		if _, final := errors.AsType[*finalError](err); fresh || final || ctx.Err() != nil {
			return err
		}
	}
}

// ask sends a request and reads its answer.
func (x *conn) ask(ctx context.Context, q request, b []byte, patience time.Duration) error {
	defer context.AfterFunc(ctx, func() { _ = x.Close() })() //nolint:errcheck // the read says it
	if err := x.SetDeadline(time.Now().Add(min(answerTime, patience))); err != nil {
		return err
	}
	if _, err := x.Write(q.encode()); err != nil {
		return err
	}
	return readAnswer(x, b)
}

// take returns an idle connection, or a fresh one.
func (c *Client) take(ctx context.Context) (x *conn, fresh bool, err error) {
	c.mu.Lock()
	if n := len(c.idle); n > 0 {
		x, c.idle = c.idle[n-1], c.idle[:n-1]
	}
	c.mu.Unlock()
	if x != nil {
		return x, false, nil
	}
	x, err = c.connect(ctx)
	return x, true, err
}

func (c *Client) give(x *conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.idle = append(c.idle, x)
}

// connect dials, and sees that the server has the checkpoint that is wanted.
func (c *Client) connect(ctx context.Context) (_ *conn, err error) {
	host, _, err := net.SplitHostPort(c.remote.Addr)
	if err != nil {
		return nil, &finalError{err}
	}
	config, err := c.remote.Client(host)
	if err != nil {
		return nil, &finalError{err}
	}
	ctx, cancel := context.WithTimeout(ctx, min(dialTime, c.remote.Patience))
	defer cancel()
	raw, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", c.remote.Addr)
	if err != nil {
		return nil, err
	}
	x := &conn{raw}
	if err := c.greet(ctx, x); err != nil {
		return nil, errors.Join(err, x.Close())
	}
	return x, nil
}

// greet reads first: a server that does not trust us says so here.
func (c *Client) greet(ctx context.Context, x *conn) error {
	defer context.AfterFunc(ctx, func() { _ = x.Close() })() //nolint:errcheck // the read says it
	b := make([]byte, welcomeSize)
	if _, err := io.ReadFull(x, b); err != nil {
		return err
	}
	w, err := parseWelcome(b)
	if err != nil {
		return &finalError{err}
	}
	if err := c.recognize(w); err != nil {
		return &finalError{err}
	}
	_, err = x.Write(hello())
	return err
}

// recognize compares what is served with what is wanted.
func (c *Client) recognize(w *welcome) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.state) == 0 {
		c.state = w.digest[:]
	}
	if !slices.Equal(c.state, w.digest[:]) {
		return fmt.Errorf("it serves another checkpoint: its state has the digest %x, want %x", w.digest, c.state)
	}
	c.size = w.size
	return nil
}
