package migrate

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr"
	"github.com/stasis-cr/stasis/cr/blob/dir"
)

// roundFigures are those of one round.
type roundFigures struct {
	frozenAt time.Time
	frozen   time.Duration
	bytes    int64
	sent     time.Duration // that it took the other side to fetch it
	addr     string        // where the guard serves the last one
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
func (m *source) fetched(ctx context.Context, path string, n int) (took time.Duration, err error) {
	s, err := serve(ctx, path, m.w, m.o, m.log)
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
	return done.Took, emptyPages(path)
}

// emptyPages gives back the space of a round's pages: the next ones need its state.
func emptyPages(path string) (err error) {
	image, err := dir.OpenState(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, image.Close()) }()
	for _, f := range image.Image().Pages.OwnFiles() {
		if err := empty(filepath.Join(path, f.Name)); err != nil {
			return err
		}
	}
	return nil
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
