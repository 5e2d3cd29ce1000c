package cr

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/fault"
	"github.com/stasis-cr/stasis/cr/pageserver"
)

// Gate holds a restore back at its last step: the container is whole, and has not
// run. It opens once. If whoever holds it dies the restore fails, and leaves
// nothing.
//
// A restore can't be told of it by a flag, because a container manager starts it:
// it looks for the gate of its container, in a directory that only root writes.
// What it holds locked there, and the mark that it leaves, say to others what
// became of it.
type Gate struct {
	dir string
	l   *net.UnixListener
	c   *net.UnixConn
}

// GateOrders are what a restore at a gate has to do besides what its flags say.
type GateOrders struct {
	LazyPages  bool
	PageServer pageserver.Remote
}

const (
	gateReady = 'r' // from the restore: the container is whole
	gateOpen  = 'o' // to the restore: let it go
)

// gateDir names the state root, which under containerd is a namespace's, instead of
// the container, so as to be short: a socket's path has 108 bytes at most (unix(7)).
func gateDir(root, id string) string {
	name := ownName("gate", root, id)
	sum := name[strings.LastIndexByte(name, '-'):]
	return filepath.Join(filepath.Dir(name), fmt.Sprintf("gate-%.40s%s", filepath.Base(root), sum))
}

func gateSocket(dir string) string      { return filepath.Join(dir, "s") }
func gateLock(dir string) string        { return filepath.Join(dir, "lock") }
func gateMark(dir string) string        { return filepath.Join(dir, "released") }
func gateOrdersFile(dir string) string  { return filepath.Join(dir, "orders.json") }
func gateAddr(dir string) *net.UnixAddr { return &net.UnixAddr{Name: gateSocket(dir), Net: "unix"} }

// MakeGate makes the gate of a container that is going to be restored, and takes
// the place of one whose holder has gone. The caller closes it, and removes it
// when no restore can come any more.
func MakeGate(root, id string, o GateOrders) (_ *Gate, err error) {
	dir := gateDir(root, id)
	if err := os.RemoveAll(dir); err != nil {
		return nil, fmt.Errorf("gate: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("gate: %w", err)
	}
	g := &Gate{dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("gate: %w", err), os.RemoveAll(dir))
		}
	}()
	b, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(gateOrdersFile(dir), b, 0o600); err != nil {
		return nil, err
	}
	if g.l, err = net.ListenUnix("unix", gateAddr(dir)); err != nil {
		return nil, err
	}
	g.l.SetUnlinkOnClose(false) // a gate without a socket is shut as well, but says less
	return g, nil
}

// Wait waits until the container stands at the gate, whole. It fails if ctx ends
// first, or the restore.
func (g *Gate) Wait(ctx context.Context) (err error) {
	defer context.AfterFunc(ctx, func() { _ = g.l.Close() })() //nolint:errcheck // the accept says it
	if g.c, err = g.l.AcceptUnix(); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return fmt.Errorf("gate: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = g.c.Close() }) //nolint:errcheck // the read says it
	defer stop()
	b := make([]byte, 1)
	if _, err := io.ReadFull(g.c, b); err != nil || b[0] != gateReady {
		return fmt.Errorf("gate: the restore has ended: %w", errors.Join(context.Cause(ctx), err))
	}
	return nil
}

// Open lets the container go. Precondition: Wait has succeeded.
func (g *Gate) Open() error {
	if _, err := g.c.Write([]byte{gateOpen}); err != nil {
		return fmt.Errorf("gate: %w", err)
	}
	return nil
}

// Close gives up the gate: a restore that waits at it fails, and one that comes
// later, until [RemoveGate]. It may be called again.
func (g *Gate) Close() error {
	err := shut(g.l)
	if g.c != nil {
		err = errors.Join(err, shut(g.c))
	}
	return err
}

// shut closes what the end of a context may have closed.
func shut(c io.Closer) error {
	if err := c.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// PassedGate waits until no restore stands at the gate of a container, whose
// holder has gone, and says whether one has let its container go.
func PassedGate(ctx context.Context, root, id string) (bool, error) {
	dir := gateDir(root, id)
	f, err := os.OpenFile(gateLock(dir), os.O_RDWR|os.O_CREATE, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("gate: %w", err)
	}
	defer f.Close() //nolint:errcheck // nothing is written
	if err := awaitLock(ctx, f, unix.LOCK_EX); err != nil {
		return false, fmt.Errorf("gate: %w", err)
	}
	_, err = os.Lstat(gateMark(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// RemoveGate removes the gate of a container. Precondition: no restore stands at
// it, or is on its way there, for that would pass.
func RemoveGate(root, id string) error { return os.RemoveAll(gateDir(root, id)) }

// awaitLock takes the lock of a file when whoever has it lets it go.
func awaitLock(ctx context.Context, f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(filledPause):
		}
	}
}

// gated is a restore at a gate; nil: there is none.
type gated struct {
	dir    string
	lock   *os.File
	c      *net.UnixConn
	opened chan struct{}
}

// errShut says that whoever held the gate has given up the container.
var errShut = errors.New("gate: the container is not wanted any more")

// joinGate looks for the gate of a container, and takes the orders there.
func joinGate(o *RestoreOptions) (_ *gated, err error) {
	g := &gated{dir: gateDir(o.Root, o.ID), opened: make(chan struct{})}
	b, err := os.ReadFile(gateOrdersFile(g.dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // nil is a gated
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("gate: %w", err)
		}
	}()
	if err != nil {
		return nil, err
	}
	var orders GateOrders
	if err := json.Unmarshal(b, &orders); err != nil {
		return nil, err
	}
	if g.lock, err = os.OpenFile(gateLock(g.dir), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.close())
		}
	}()
	if err = unix.Flock(int(g.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, err
	}
	if g.c, err = net.DialUnix("unix", nil, gateAddr(g.dir)); err != nil {
		return nil, fmt.Errorf("a migration of this container has died here (stasis migrate-server settles that when it starts): %w", err)
	}
	o.LazyPages = o.LazyPages || orders.LazyPages
	if orders.PageServer.Addr != "" {
		o.PageServer = orders.PageServer
	}
	return g, nil
}

// watch is a context that ends when the gate is shut: a restore that nobody wants
// any more is not to go on for minutes. The caller calls what it returns.
func (g *gated) watch(ctx context.Context) (context.Context, context.CancelFunc) {
	if g == nil {
		return ctx, func() {}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		b := make([]byte, 1)
		if _, err := io.ReadFull(g.c, b); err != nil || b[0] != gateOpen {
			cancel(errShut)
			return
		}
		close(g.opened)
	}()
	return ctx, func() { cancel(nil) }
}

// pass waits until the gate opens. ctx is that of watch.
func (g *gated) pass(ctx context.Context) error {
	if g == nil {
		return nil
	}
	if _, err := g.c.Write([]byte{gateReady}); err != nil {
		return fmt.Errorf("gate: %w", err)
	}
	if err := fault.Point("restore-gate"); err != nil {
		return err
	}
	select {
	case <-g.opened:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	f, err := os.OpenFile(gateMark(g.dir), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("gate: %w", err)
	}
	return errors.Join(f.Close(), fault.Point("restore-passed"))
}

// close is safe on nil.
func (g *gated) close() error {
	if g == nil {
		return nil
	}
	err := g.lock.Close()
	if g.c != nil {
		err = errors.Join(err, shut(g.c))
	}
	return err
}
