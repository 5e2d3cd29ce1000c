package migrate

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr"
	"github.com/stasis-cr/stasis/cr/fault"
	"github.com/stasis-cr/stasis/cr/pageserver"
)

// Defaults of a migration.
const (
	DefaultDowntime = 300 * time.Millisecond
	DefaultRounds   = 10
)

// Options say how a container goes to another machine.
type Options struct {
	To   string // HOST:PORT of a listener; its certificate is for HOST
	Keys pageserver.Keys
	Dir  string // for checkpoints on their way

	// Listen is where the other machine fetches memory: HOST:PORT. Without a host
	// it is the address that the other machine sees of us, for which our certificate
	// is then; without a port a free one.
	Listen string

	Lazy     bool          // the container goes on before all of its memory is there
	Downtime time.Duration // rounds end when it would not stand still for longer; 0: DefaultDowntime
	Rounds   int           // at most; 0: DefaultRounds
	Compress string        // see [cr.CheckpointOptions]
	Keep     bool          // the source's record of the container stays

	// Guard starts the guard, which is to live on if we die. See [Guard].
	Guard func() (*GuardProcess, error)

	Log      *slog.Logger
	Progress func(Progress) // nil: none
}

// Progress is how far a migration has come.
type Progress struct {
	Phase       string // "image", "files", "memory", "stopped", "running", "rest of the memory"
	Round       int    // of memory, from 1; 0 before
	Sent        int64  // bytes of memory in all rounds
	Done, Total int64  // bytes within the phase; 0: not known
	// Rate is how fast the container writes memory, in bytes (as they are sent) a
	// second, and Downtime how long it would stand still if it stopped now. Both are
	// of the last round; 0 before the second.
	Rate     int64
	Downtime time.Duration
	Ended    bool // the round is over: this is the last word of it
}

// Result is what a migration came to.
type Result struct {
	PID      int           // of the container's init over there
	Rounds   int           // of memory, without the last
	Sent     int64         // bytes of memory
	Downtime time.Duration // that the container stood still
	Took     time.Duration
}

// ErrHeld says that the container stands still and that nobody knows whether it
// runs on the other machine.
var ErrHeld = errors.New("the container is paused here, as it may run on the other machine: " +
	"a process of ours goes on asking, until a migrate-server there answers")

// Migrate moves a container. If it fails the container goes on where it was, unless
// the error is ErrHeld.
func Migrate(ctx context.Context, src Source, o Options) (_ Result, err error) {
	m := &source{src: src, o: o, id: newID(), begin: time.Now(), relieve: func() error { return nil }}
	if m.o.Downtime <= 0 {
		m.o.Downtime = DefaultDowntime
	}
	if m.o.Rounds <= 0 {
		m.o.Rounds = DefaultRounds
	}
	m.log = o.Log.With(slog.String("migration", m.id))
	m.dir = outgoing(o.Dir, m.id)
	err = m.run(ctx)
	m.result.Took = time.Since(m.begin)
	return m.result, err
}

// outgoingPrefix is how the names of directories begin where a source's checkpoints
// lie. The guard makes them, so that there is none without somebody who removes it
// if the source dies; source and guard lock them, shared.
const outgoingPrefix = "from-here-"

func outgoing(work, id string) string { return filepath.Join(work, outgoingPrefix+id) }

// placeOutgoing makes a directory for checkpoints, and locks it.
func placeOutgoing(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	lock, err := lockDir(dir, unix.LOCK_SH)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return lock, nil
}

// sweepOutgoing removes what sources have left that died together with their
// guards.
func sweepOutgoing(work string) error {
	list, err := filepath.Glob(filepath.Join(work, outgoingPrefix+"*"))
	if err != nil {
		return err
	}
	var all error
	for _, dir := range list {
		lock, err := lockDir(dir, unix.LOCK_EX)
		if err != nil {
			continue // somebody needs it, or removes it
		}
		all = errors.Join(all, os.RemoveAll(dir), lock.Close())
	}
	return all
}

// source is the side from which a container goes.
type source struct {
	src   Source
	o     Options
	id    string
	dir   string
	log   *slog.Logger
	begin time.Time

	w     *wire
	guard *guardLink
	runs  bool // over there

	relieve func() error // ends what standIn has begun

	result Result
	last   roundFigures
	memory int64 // bytes that must be restored before the container goes on, about
}

func (m *source) run(ctx context.Context) (err error) {
	hello := message{Kind: kindHello, Version: Version, ID: m.id, Lazy: m.o.Lazy}
	if hello.Description, err = m.src.Describe(ctx); err != nil {
		return err
	}
	if err := m.survey(ctx); err != nil {
		return err
	}
	if m.w, err = dial(ctx, m.o.To, m.o.Keys); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.w.close()) }()
	defer m.w.until(ctx)()
	accepted, err := m.w.ask(hello, kindAccepted)
	if err != nil {
		return err
	}
	if err := sweepOutgoing(m.o.Dir); err != nil {
		return err
	}
	if m.guard, err = m.startGuard(); err != nil {
		return errors.Join(err, os.RemoveAll(m.dir))
	}
	lock, err := lockDir(m.dir, unix.LOCK_SH)
	if err != nil {
		return errors.Join(err, m.end())
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	err = m.move(ctx, accepted.NeedImage)
	if errors.Is(err, ErrHeld) {
		return err // the guard asks on
	}
	return errors.Join(err, m.end())
}

// survey finds what stands in the way before anything is sent.
func (m *source) survey(ctx context.Context) error {
	refusals, err := cr.Check(ctx, m.src.Engine())
	return errors.Join(append(refusals, err)...)
}

// end removes what lies here of the migration.
func (m *source) end() error {
	e := m.src.Engine()
	return errors.Join(m.relieve(), m.guard.done(), cr.StopFollowing(e.Root, e.ID), os.RemoveAll(m.dir))
}

// dial connects to a listener.
func dial(ctx context.Context, to string, k pageserver.Keys) (*wire, error) {
	host, _, err := net.SplitHostPort(to)
	if err != nil {
		return nil, err
	}
	config, err := k.Client(host)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, greetTime)
	defer cancel()
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", to)
	if err != nil {
		return nil, err
	}
	if err := watchful(raw); err != nil {
		return nil, errors.Join(err, raw.Close())
	}
	c := tls.Client(raw, config)
	if err := c.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", to, err), c.Close())
	}
	return newWire(c), nil
}

// move sends everything, and hands the container over.
func (m *source) move(ctx context.Context, needImage bool) error {
	if err := fault.Point("migrate-accepted"); err != nil {
		return err
	}
	if needImage {
		err := m.send(ctx, kindImage, "image", m.src.WriteImage)
		if err != nil {
			return err
		}
	}
	if err := m.send(ctx, kindRootfs, "files", m.src.WriteRootfs); err != nil {
		return err
	}
	if err := fault.Point("migrate-files"); err != nil {
		return err
	}
	for {
		more, err := m.round(ctx)
		if err != nil {
			return err
		}
		if err := fault.Point("migrate-round"); err != nil {
			return err
		}
		if !more {
			break
		}
	}
	if err := m.final(ctx); err != nil {
		return err
	}
	return m.after(ctx)
}

// send sends a stream and waits until it has been taken.
func (m *source) send(ctx context.Context, k kind, phase string, write func(context.Context, io.Writer) error) error {
	counted := int64(0)
	err := m.w.stream(message{Kind: k}, func(w io.Writer) error {
		return write(ctx, writerFunc(func(b []byte) (int, error) {
			n, err := w.Write(b)
			counted += int64(n)
			m.report(Progress{Phase: phase, Done: counted})
			return n, err
		}))
	})
	if err != nil {
		return fmt.Errorf("send the container's %s: %w", phase, err)
	}
	_, err = m.w.want(kindDone)
	return err
}

type writerFunc func(b []byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func (m *source) report(p Progress) {
	if m.o.Progress != nil {
		p.Round, p.Sent = m.result.Rounds, m.result.Sent
		m.o.Progress(p)
	}
}
