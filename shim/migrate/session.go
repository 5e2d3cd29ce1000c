package migrate

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"

	"github.com/stasis-cr/stasis/cr"
	"github.com/stasis-cr/stasis/cr/fault"
	"github.com/stasis-cr/stasis/cr/pageserver"
)

// Bounds of a session.
const (
	greetTime   = 10 * time.Second // for the handshake and the first word
	wordTime    = 2 * time.Minute  // for the source to give the word
	startedTime = 15 * time.Second // for a container that was let go to be known as running
	roundTime   = 20 * time.Second // that who serves a checkpoint may not answer
	finalTime   = 5 * time.Second  // the same while the container stands still
	removeTime  = 2 * time.Minute
)

// SessionOptions are those of one connection's session.
type SessionOptions struct {
	Keys pageserver.Keys
	Dir  string // for what comes
	// Target makes a container's place. The migration's name marks what it makes:
	// nothing without that mark is removed.
	Target func(ctx context.Context, migration string) (Target, error)
	Log    *slog.Logger
}

// Session serves one connection from beginning to end: a container that comes, or
// the question what became of one.
func Session(ctx context.Context, c net.Conn, o SessionOptions) error {
	defer c.Close() //nolint:errcheck // all was said
	config, err := o.Keys.Server()
	if err != nil {
		return err
	}
	if err := watchful(c); err != nil {
		return err
	}
	secure := tls.Server(c, config)
	if err := secure.SetDeadline(time.Now().Add(greetTime)); err != nil {
		return err
	}
	if err := secure.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("client %s refused: %w", c.RemoteAddr(), err)
	}
	w := newWire(secure)
	defer w.until(ctx)()
	m, err := w.recv()
	if err != nil {
		return err
	}
	if err := secure.SetDeadline(time.Time{}); err != nil {
		return err
	}
	s := &session{w: w, o: o, log: o.Log.With(slog.String("migration", m.ID))}
	switch {
	case !idForm.MatchString(m.ID):
		err = fmt.Errorf("%q is no name of a migration: %w", m.ID, errProtocol)
	case m.Version != Version:
		err = fmt.Errorf("version %d is spoken there, and %d here: %w", m.Version, Version, errProtocol)
	case m.Kind == kindHello:
		err = s.migrate(ctx, m)
	case m.Kind == kindResolve:
		err = s.resolve(ctx, m.ID)
	default:
		err = errProtocol
	}
	if err == nil || s.ran() || errors.Is(err, errUnsure) {
		return err // a connection that closes without a word has the source ask
	}
	return errors.Join(err, ignoreLost(w.refuse(err)))
}

// errUnsure says that something may be left of the container, so that nothing may
// be said of it.
var errUnsure = errors.New("the container could not be removed: who asks again has it tried again")

// ran says whether the container has come to run here.
func (s *session) ran() bool { return s.file != nil && s.file.entry.Outcome == outcomeRunning }

func ignoreLost(err error) error {
	if errors.Is(err, errLost) {
		return nil
	}
	return err
}

// session is one migration on the side where the container goes.
type session struct {
	w       *wire
	o       SessionOptions
	log     *slog.Logger
	file    *file
	target  Target
	created bool // the container is
	rounds  int  // checkpoints that are here
	run     *run // nil: no restore was begun
}

// migrate takes a container. If it does not come to run here nothing is left of
// it.
func (s *session) migrate(ctx context.Context, hello message) (err error) {
	if s.target, err = s.o.Target(ctx, hello.ID); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.target.Close()) }()
	needImage, err := s.target.Accept(ctx, hello.Description)
	if err != nil {
		return err
	}
	if s.file, err = openFile(ctx, s.o.Dir, hello.ID); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.file.close()) }()
	_, s.file.entry.Container = s.target.Engine()
	s.file.entry.Lazy = hello.Lazy
	if err := s.file.write(); err != nil {
		return errors.Join(err, s.file.empty())
	}
	err = s.receive(ctx, needImage)
	if err != nil && !s.ran() {
		s.log.Warn("dropped", slog.Any("err", err))
		if e := s.drop(ctx, err.Error()); e != nil {
			return errors.Join(errUnsure, e, err)
		}
	}
	return err
}

// drop removes everything and then says so.
func (s *session) drop(ctx context.Context, why string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTime)
	defer cancel()
	root, id := s.target.Engine()
	if s.run != nil { // it may not even have come to the gate, which is shut
		select {
		case <-s.run.ended:
		case <-ctx.Done():
			return fmt.Errorf("its restore does not end: %w", ctx.Err())
		}
	}
	if _, err := cr.PassedGate(ctx, root, id); err != nil { // until a restore has ended that is another session's
		return err
	}
	if err := s.target.Remove(ctx); err != nil {
		return err
	}
	if err := cr.RemoveGate(root, id); err != nil {
		return err
	}
	if err := s.file.settle(outcomeDropped, 0, why); err != nil {
		return err
	}
	return s.file.empty()
}

// receive takes image, files and rounds of memory, until the last checkpoint is
// announced.
func (s *session) receive(ctx context.Context, needImage bool) error {
	if err := fault.Point("session-accepted"); err != nil {
		return err
	}
	if err := s.w.send(message{Kind: kindAccepted, NeedImage: needImage}); err != nil {
		return err
	}
	for {
		m, err := s.w.recv()
		if err != nil {
			return err
		}
		begin := time.Now()
		switch {
		case m.Kind == kindImage && needImage:
			needImage = false
			err = s.image(ctx)
		case m.Kind == kindRootfs && !needImage:
			err = s.rootfs(ctx)
		case m.Kind == kindRound && m.Round == s.rounds:
			err = s.round(ctx, m)
		case m.Kind == kindFinal && s.created:
			return s.start(ctx, m)
		default:
			err = fmt.Errorf("%q comes at the wrong time: %w", m.Kind, errProtocol)
		}
		if err == nil {
			err = s.w.send(message{Kind: kindDone, Took: time.Since(begin)})
		}
		if err != nil {
			return err
		}
	}
}

func (s *session) image(ctx context.Context) error {
	if err := s.w.receive(func(r io.Reader) error { return s.target.ReadImage(ctx, r) }); err != nil {
		return err
	}
	return fault.Point("session-image")
}

// rootfs takes files. The container is made before the first.
func (s *session) rootfs(ctx context.Context) error {
	if !s.created {
		if err := s.target.Create(ctx); err != nil {
			return err
		}
		s.created = true
	}
	if err := s.w.receive(func(r io.Reader) error { return s.target.ReadRootfs(ctx, r) }); err != nil {
		return err
	}
	return fault.Point("session-rootfs")
}

func (s *session) round(ctx context.Context, m message) error {
	if err := s.fetch(ctx, s.remote(m, roundTime), m.Round, pageserver.OwnPages); err != nil {
		return err
	}
	s.rounds++
	return fault.Point("session-round")
}

// fetch brings a checkpoint from where it is served. Those that it builds upon are
// here.
func (s *session) fetch(ctx context.Context, from pageserver.Remote, round int, part pageserver.Part) (err error) {
	c := pageserver.NewClient(from)
	defer func() { err = errors.Join(err, c.Close()) }()
	return c.Fetch(ctx, s.file.checkpoint(round), part)
}

func (s *session) remote(m message, patience time.Duration) pageserver.Remote {
	return pageserver.Remote{Addr: m.Addr, Keys: s.o.Keys, Patience: patience, State: m.State}
}

// start has the container restored up to the gate, and opens that when the source
// says so.
func (s *session) start(ctx context.Context, m message) (err error) {
	begin := time.Now()
	orders, part := cr.GateOrders{}, pageserver.OwnPages
	if s.file.entry.Lazy {
		orders.LazyPages, orders.PageServer = true, s.remote(m, pageserver.DefaultPatience)
		part = pageserver.NoPages
	}
	if err := s.fetch(ctx, s.remote(m, finalTime), -1, part); err != nil {
		return err
	}
	if err := fault.Point("session-final"); err != nil {
		return err
	}
	root, id := s.target.Engine()
	gate, err := cr.MakeGate(root, id, orders)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, gate.Close()) }()
	s.run = s.restore(ctx)
	if err := fault.Point("session-restoring"); err != nil {
		return err
	}
	word := s.word()
	if err := s.atGate(ctx, gate, word); err != nil {
		return err
	}
	if err := fault.Point("session-ready"); err != nil {
		return err
	}
	if err := s.w.send(message{Kind: kindReady, Took: time.Since(begin)}); err != nil {
		return err
	}
	if err := s.w.c.SetReadDeadline(time.Now().Add(wordTime)); err != nil {
		return err
	}
	if err := <-word; err != nil {
		return err
	}
	return s.letGo(ctx, gate, s.run)
}

// word waits for the source's word. An error comes at once, also if it gives up
// before it could be asked for it.
func (s *session) word() <-chan error {
	c := make(chan error, 1)
	go func() {
		_, err := s.w.want(kindGo)
		c <- err
	}()
	return c
}

// run is a restore on its way.
type run struct {
	ended chan struct{}
	pid   int
	err   error
}

// restore has the container restored. What is begun comes to its end even if we
// are told to give up: the gate says whether it lives.
func (s *session) restore(ctx context.Context) *run {
	r := &run{ended: make(chan struct{})}
	go func() {
		defer close(r.ended)
		r.pid, r.err = s.target.Start(context.WithoutCancel(ctx), s.file.checkpoint(-1))
	}()
	return r
}

// atGate waits until the container is whole, unless the word comes before.
func (s *session) atGate(ctx context.Context, gate *cr.Gate, word <-chan error) error {
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	there := make(chan error, 1)
	go func() { there <- gate.Wait(waiting) }()
	select {
	case err := <-there:
		if err == nil {
			return nil
		}
		_ = gate.Close() //nolint:errcheck // it is closed again
		<-s.run.ended
		return errors.Join(s.run.err, err)
	case err := <-word:
		return errors.Join(errors.New("the source does not wait for the container any more"), err)
	case <-s.run.ended:
		if s.run.err != nil {
			return s.run.err
		}
		return errors.New("the container was restored past the gate")
	}
}

// letGo opens the gate: from before that on, only what is found says whether the
// container runs.
func (s *session) letGo(ctx context.Context, gate *cr.Gate, r *run) error {
	if err := s.file.settle(outcomeGoing, 0, ""); err != nil {
		return err
	}
	if err := fault.Point("session-going"); err != nil {
		return err
	}
	if err := gate.Open(); err != nil {
		return err
	}
	if err := fault.Point("session-opened"); err != nil {
		return errors.Join(err, s.settled(r))
	}
	if err := s.settled(r); err != nil {
		return err
	}
	if err := fault.Point("session-running"); err != nil {
		return err
	}
	s.log.Info("runs here", slog.String("id", s.file.entry.Container), slog.Int("pid", r.pid))
	err := s.w.send(message{Kind: kindRunning, PID: r.pid})
	return errors.Join(err, s.finish(ctx, err == nil))
}

// settled waits until it is known whether the container runs, and writes that.
func (s *session) settled(r *run) error {
	<-r.ended
	if r.err != nil {
		return r.err
	}
	return s.file.settle(outcomeRunning, r.pid, "")
}

// finish waits until the memory is there, if it comes later, and removes what was
// needed for it. The source is told if it is there.
func (s *session) finish(ctx context.Context, tell bool) error {
	root, id := s.target.Engine()
	if err := cr.RemoveGate(root, id); err != nil {
		return err
	}
	if s.file.entry.Lazy {
		if err := cr.AwaitFilled(ctx, root, id); err != nil {
			return err
		}
	}
	if err := fault.Point("session-filled"); err != nil {
		return err
	}
	if err := s.file.empty(); err != nil || !s.file.entry.Lazy || !tell {
		return err
	}
	return s.w.send(message{Kind: kindFilled})
}

// resolve says what became of a migration, and makes it so: what nobody works on
// any more runs, or is removed.
func (s *session) resolve(ctx context.Context, id string) (err error) {
	s.file = newFile(s.o.Dir, id)
	if err := s.file.read(); err != nil && !errors.Is(err, errUnknown) {
		return errors.Join(errUnsure, err)
	}
	early := s.ran() // whoever works on it still waits for its memory
	if early {
		if err := s.w.send(message{Kind: kindRunning, PID: s.file.entry.PID}); err != nil {
			return err
		}
	}
	if s.file, err = findFile(ctx, s.o.Dir, id); errors.Is(err, errUnknown) {
		return err
	}
	if err != nil {
		return errors.Join(errUnsure, err)
	}
	defer func() { err = errors.Join(err, s.file.close()) }()
	if s.file.lock != nil {
		if s.target, err = s.o.Target(ctx, id); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, s.target.Close()) }()
		s.target.Attach(s.file.entry.Container)
		if err := s.settle(ctx); err != nil {
			return errors.Join(errUnsure, err)
		}
	}
	e := s.file.entry
	if !s.ran() {
		return s.w.send(message{Kind: kindDropped, Error: e.Why})
	}
	if !early {
		if err := s.w.send(message{Kind: kindRunning, PID: e.PID}); err != nil {
			return err
		}
	}
	if s.file.lock != nil {
		return s.finish(ctx, true)
	}
	return s.w.send(message{Kind: kindFilled})
}

// settle finds out what a session that died has left, and finishes or removes it.
func (s *session) settle(ctx context.Context) error {
	if s.ran() {
		return nil
	}
	if s.file.entry.Container == "" { // it had made nothing
		return errors.Join(s.file.settle(outcomeDropped, 0, "its session ended before it began"), s.file.empty())
	}
	if s.file.entry.Outcome == outcomeGoing {
		pid, err := s.passed(ctx)
		if err != nil {
			return err
		}
		if pid != 0 {
			s.log.Info("runs here, though its session has died", slog.Int("pid", pid))
			return s.file.settle(outcomeRunning, pid, "")
		}
	}
	return s.drop(ctx, "its session died before it ran")
}

// passed is the init of a container that a session which died has let go; 0: it
// does not run.
func (s *session) passed(ctx context.Context) (pid int, err error) {
	root, id := s.target.Engine()
	if passed, err := cr.PassedGate(ctx, root, id); err != nil || !passed {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, startedTime)
	defer cancel()
	for { // its manager learns of it a little later
		pid, err := s.target.Running(ctx)
		if pid != 0 || err != nil {
			return pid, err
		}
		select {
		case <-ctx.Done():
			return 0, nil
		case <-time.After(pause):
		}
	}
}
