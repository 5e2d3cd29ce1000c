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
// lie. Source and guard lock them, shared.
const outgoingPrefix = "from-here-"

func outgoing(work, id string) string { return filepath.Join(work, outgoingPrefix+id) }

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

// roundFigures are those of one round.
type roundFigures struct {
	frozenAt time.Time
	frozen   time.Duration
	bytes    int64
	sent     time.Duration // that it took the other side to fetch it
	addr     string        // where the guard serves the last one
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
	lock, err := m.place()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	if m.guard, err = m.startGuard(); err != nil {
		return errors.Join(err, os.RemoveAll(m.dir))
	}
	err = m.move(ctx, accepted.NeedImage)
	if errors.Is(err, ErrHeld) {
		return err // the guard asks on
	}
	return errors.Join(err, m.end())
}

// place makes the directory for checkpoints.
func (m *source) place() (lock *os.File, err error) {
	if err := sweepOutgoing(m.o.Dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(m.dir, 0o700); err != nil {
		return nil, err
	}
	if lock, err = lockDir(m.dir, unix.LOCK_SH); err != nil {
		return nil, errors.Join(err, os.RemoveAll(m.dir))
	}
	return lock, nil
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

// engine is a checkpoint of the container.
func (m *source) engine(ctx context.Context, name, parent string) cr.CheckpointOptions {
	e := m.src.Engine()
	e.ImageDir = filepath.Join(m.dir, name)
	e.WorkDir, e.Compress = m.dir, m.o.Compress
	if m.log.Enabled(ctx, slog.LevelDebug) { // it warns of what is no surprise here
		e.Log = m.log
	}
	if parent != "" {
		e.ParentPath = filepath.Join("..", parent)
	}
	return e
}

// parent is the name of the round before; empty: there is none.
func (m *source) parent() string {
	if m.result.Rounds == 0 {
		return ""
	}
	return roundName(m.result.Rounds - 1)
}

// round saves what the container has written since the round before, while it
// runs, and sends it. It says whether another one would pay.
func (m *source) round(ctx context.Context) (more bool, err error) {
	n := m.result.Rounds
	e := m.engine(ctx, roundName(n), m.parent())
	e.PreDump = true
	e.Progress = func(p cr.Progress) { m.report(Progress{Phase: "memory", Done: p.Done, Total: p.Total}) }
	now := roundFigures{frozenAt: time.Now()}
	stats, err := cr.Checkpoint(ctx, e)
	if err != nil {
		return false, err
	}
	now.frozen, now.bytes = stats.Frozen, stats.PagesBytes
	if now.sent, err = m.fetched(ctx, e.ImageDir, n); err != nil {
		return false, err
	}
	m.result.Rounds++
	m.result.Sent += now.bytes
	if n == 0 && !m.o.Lazy {
		m.memory = now.bytes
	}
	rate, downtime := expect(m.last, now)
	downtime += time.Duration(float64(m.memory) / restoreRate * float64(time.Second))
	m.log.Info("round", slog.Int("round", n+1), slog.Int64("bytes", now.bytes), slog.Duration("sent_in", now.sent),
		slog.Int64("written_per_second", rate), slog.Duration("downtime", downtime))
	m.report(Progress{Phase: "memory", Done: now.bytes, Total: now.bytes, Rate: rate, Downtime: downtime, Ended: true})
	more = another(m.last, now, downtime, m.o.Downtime) && m.result.Rounds < m.o.Rounds
	m.last = now
	return more, nil
}

// About how long a container without memory takes to be restored, and how fast its
// memory comes back: bytes a second.
const (
	launchTime  = 130 * time.Millisecond
	restoreRate = 3 << 30
)

// little is what is sent sooner than another round is made.
const little = 1 << 20

// expect says from two rounds how fast the container writes, in bytes a second as
// they are sent, and how long it would stand still if it were stopped now. The
// first round says nothing of what is written.
func expect(before, now roundFigures) (rate int64, downtime time.Duration) {
	if before.frozenAt.IsZero() || now.bytes == 0 {
		return 0, now.frozen + launchTime
	}
	since := now.frozenAt.Sub(before.frozenAt)
	if since <= 0 {
		return 0, now.frozen + launchTime
	}
	perSecond := float64(now.bytes) / since.Seconds()
	left := min(perSecond*(now.frozen+now.sent).Seconds(), float64(now.bytes))
	send := left / float64(now.bytes) * float64(now.sent)
	return int64(perSecond), now.frozen + launchTime + time.Duration(send)
}

// another says whether another round pays: the one before says too little, or it
// was worth its while and the container would stand still for too long.
func another(before, now roundFigures, downtime, most time.Duration) bool {
	if before.frozenAt.IsZero() {
		return now.bytes > little
	}
	return now.bytes > little && downtime > most && now.bytes < before.bytes*3/4
}

// fetched serves a round until the other side has it, and gives its space back.
func (m *source) fetched(ctx context.Context, dir string, n int) (took time.Duration, err error) {
	s, err := serve(ctx, dir, m.w, m.o, m.log)
	if err != nil {
		return 0, err
	}
	done, err := m.w.ask(message{Kind: kindRound, Round: n, Addr: s.addr, State: s.state}, kindDone)
	if e := s.stop(); err == nil {
		err = e
	}
	if err != nil {
		return 0, err
	}
	return done.Took, empty(filepath.Join(dir, cr.PagesFile))
}

// empty gives back the space of a file that keeps its size. A file system that
// can't do it keeps the space until the end.
func empty(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // nothing of worth is in it
	st, err := f.Stat()
	if err != nil || st.Size() == 0 {
		return err
	}
	err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, st.Size())
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = nil
	}
	return err
}

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
