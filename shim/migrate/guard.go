package migrate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"

	"github.com/stasis-cr/stasis/cr"
	"github.com/stasis-cr/stasis/cr/fault"
	"github.com/stasis-cr/stasis/cr/pageserver"
)

// guardTask is what a guard is told first.
type guardTask struct {
	ID     string // of the migration
	To     string
	Keys   pageserver.Keys
	Listen string
	Dir    string // for the checkpoints; the guard makes it, and it goes with the migration
	Lazy   bool
	Keep   bool
}

// guardWord is a line between source and guard; the guard answers each one.
type guardWord struct {
	Serve string `json:",omitempty"` // serve this checkpoint
	Hold  bool   `json:",omitempty"` // from now on you are needed if I die
	Done  bool   `json:",omitempty"` // you are not needed any more

	Port  string `json:",omitempty"` // answer to Serve
	State []byte `json:",omitempty"`
	Error string `json:",omitempty"`
}

// guardLink is the source's end of the connection with its guard.
type guardLink struct {
	in    io.WriteCloser
	out   io.ReadCloser
	ended <-chan struct{}
	enc   *json.Encoder
	dec   *json.Decoder
	host  string
}

// GuardProcess is a guard that was started.
type GuardProcess struct {
	Stdin  io.WriteCloser
	Stdout io.ReadCloser
	Ended  <-chan struct{} // is closed when it has ended
}

// startGuard starts the guard of a migration.
func (m *source) startGuard() (*guardLink, error) {
	p, err := m.o.Guard()
	if err != nil {
		return nil, fmt.Errorf("guard: %w", err)
	}
	in, out := p.Stdin, p.Stdout
	at := listenAt(m.o.Listen, m.w)
	host, _, err := net.SplitHostPort(at)
	if err != nil {
		return nil, errors.Join(err, in.Close(), out.Close())
	}
	if err := fault.Point("migrate-guarding"); err != nil {
		return nil, errors.Join(err, in.Close(), out.Close())
	}
	g := &guardLink{in: in, out: out, ended: p.Ended, enc: json.NewEncoder(in), dec: json.NewDecoder(out), host: host}
	_, err = g.say(guardTask{
		ID: m.id, To: m.o.To, Keys: m.o.Keys, Listen: at, Dir: m.dir, Lazy: m.o.Lazy, Keep: m.o.Keep,
	})
	if err != nil {
		return nil, errors.Join(err, g.close())
	}
	return g, nil
}

// say says something to the guard and reads the answer.
func (g *guardLink) say(what any) (guardWord, error) {
	var answer guardWord
	if err := g.enc.Encode(what); err != nil {
		return answer, fmt.Errorf("guard: %w", err)
	}
	if err := g.dec.Decode(&answer); err != nil {
		return answer, fmt.Errorf("guard: %w", err)
	}
	if answer.Error != "" {
		return answer, fmt.Errorf("guard: %s", answer.Error)
	}
	return answer, nil
}

// serve lets the guard serve a checkpoint.
func (g *guardLink) serve(dir string) (*served, error) {
	a, err := g.say(guardWord{Serve: dir})
	if err != nil {
		return nil, err
	}
	return &served{addr: net.JoinHostPort(g.host, a.Port), state: a.State}, nil
}

// hold says that the container will be where only the guard can free it if we
// die.
func (g *guardLink) hold() error {
	_, err := g.say(guardWord{Hold: true})
	return err
}

// done lets the guard go, and waits until it has. One that has died is not needed
// any more either.
func (g *guardLink) done() error {
	_ = g.enc.Encode(guardWord{Done: true}) //nolint:errcheck // see above
	err := g.in.Close()
	<-g.ended
	return errors.Join(err, g.out.Close())
}

func (g *guardLink) close() error { return errors.Join(g.in.Close(), g.out.Close()) }

// guard is the side of it that lives on.
type guard struct {
	src  Source
	task guardTask
	held *cr.Held
	log  *slog.Logger
	page *served
}

// Guard watches over a migration on the side where the container is. It ends when
// the source, on the other ends of in and out, lets it go. If the source dies
// before the container was given away there is nothing to do but to remove what it
// has left. If it dies later, Guard asks the other side what became of the
// container, and ends it or lets it go on.
func Guard(ctx context.Context, src Source, in io.Reader, out io.Writer, log *slog.Logger) (err error) {
	g := &guard{src: src, log: log}
	dec, enc := json.NewDecoder(in), json.NewEncoder(out)
	if err := dec.Decode(&g.task); err != nil {
		return err
	}
	g.log = log.With(slog.String("migration", g.task.ID))
	lock, err := placeOutgoing(g.task.Dir)
	if err != nil {
		return errors.Join(err, enc.Encode(guardWord{Error: err.Error()}))
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	err = fault.Point("guard-placed")
	if err == nil {
		g.held, err = cr.Hold(ctx, src.Engine())
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(g.task.Dir), enc.Encode(guardWord{Error: err.Error()}))
	}
	defer func() { err = errors.Join(err, g.held.Close()) }()
	defer func() {
		if g.page != nil {
			err = errors.Join(err, g.page.stop())
		}
	}()
	if err := enc.Encode(guardWord{}); err != nil {
		return g.orphaned(ctx, false)
	}
	holding := false
	for {
		var w guardWord
		if err := dec.Decode(&w); err != nil {
			return g.orphaned(ctx, holding)
		}
		answer := guardWord{}
		switch {
		case w.Serve != "":
			answer = g.serve(ctx, w.Serve)
		case w.Hold:
			holding = true
			if err := fault.Point("guard-holding"); err != nil {
				answer.Error = err.Error()
			}
		case w.Done:
			return enc.Encode(guardWord{})
		}
		if err := enc.Encode(answer); err != nil {
			return g.orphaned(ctx, holding)
		}
	}
}

func (g *guard) serve(ctx context.Context, dir string) guardWord {
	s, port, err := servePages(ctx, dir, g.task.Listen, g.task.Keys, g.log)
	if err != nil {
		return guardWord{Error: err.Error()}
	}
	g.page = s
	return guardWord{Port: port, State: s.state}
}

// orphaned does what the source can't do any more.
func (g *guard) orphaned(ctx context.Context, holding bool) (err error) {
	e := g.src.Engine()
	defer func() {
		if err == nil {
			err = errors.Join(cr.StopFollowing(e.Root, e.ID), os.RemoveAll(g.task.Dir))
		}
	}()
	if !holding {
		g.log.Warn("the migration has ended before its time: the container goes on here")
		return nil
	}
	g.log.Warn("the migration has ended before its time: asking what became of the container")
	answer, err := askOn(ctx, g.task.To, g.task.Keys, g.task.ID)
	if err != nil {
		return errors.Join(ErrHeld, err)
	}
	if answer.Kind == kindDropped {
		g.log.Warn("the container goes on here", slog.String("why", answer.Error))
		return g.held.Thaw()
	}
	g.log.Warn("the container runs over there", slog.Int("pid", answer.PID))
	if err := g.held.End(ctx); err != nil {
		return err
	}
	if g.task.Lazy {
		if err := awaitFilled(ctx, g.task.To, g.task.Keys, g.task.ID); err != nil {
			return err
		}
	}
	if g.task.Keep {
		return nil
	}
	return g.src.Remove(ctx)
}
