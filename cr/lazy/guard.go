package lazy

import (
	"errors"
	"fmt"
	"log/slog"
	"os"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/sys"
)

// guard keeps what servers need, and a server running until every page is there.
type guard struct {
	openLog func(string) *slog.Logger

	engine  link // zero: gone, or never there
	server  link
	inbox   chan letter
	dead    bool // the server has exited, with status
	status  int
	kill    func()   // kills the server
	holder  *os.File // pidfd of the process that has the server's descriptors too
	init    *os.File
	held    kept
	orphan  *os.File  // userfaultfd of a child, of which the server did not tell
	spaces  []message // by number, without a file: given up
	going   bool      // the container runs
	asked   kind      // what the engine waits for an answer to, or 0
	done    bool      // every page is there
	deaths  int       // of servers, since the last one that did anything
	reached int       // entries of the journal at the last death
}

// letter is a message from one side, or the end of that side.
type letter struct {
	fromServer bool
	exited     bool // the server; its last messages may come later
	status     int
	message
	err error
}

// mostDeaths is how many servers in a row may die without having done anything.
const mostDeaths = 5

func newGuard(openLog func(string) *slog.Logger) *guard {
	return &guard{openLog: openLog, inbox: make(chan letter)}
}

// run is the guard of an engine.
func (g *guard) run(engine link) int {
	g.engine = engine
	if err := g.startServer(false); err != nil {
		return 1
	}
	go g.listen(engine, false)
	return g.loop()
}

// adopted is the guard of a server whose own guard is gone. The server sends
// what there is.
func adopted(server link, pidfd *os.File, openLog func(string) *slog.Logger) int {
	g := newGuard(openLog)
	g.server, g.going = server, true
	g.kill = func() {}
	go func() {
		_ = awaitExit(pidfd) //nolint:errcheck // it can't do without us
		g.inbox <- letter{exited: true, status: -1}
	}()
	go g.listen(server, true)
	return g.loop()
}

func (g *guard) listen(l link, fromServer bool) {
	for {
		m, err := l.recv()
		g.inbox <- letter{fromServer: fromServer, message: m, err: err}
		if err != nil {
			return
		}
	}
}

func (g *guard) startServer(again bool) error {
	ours, theirs, err := newLink()
	if err != nil {
		return err
	}
	cmd, err := start(serverVerb, again, theirs.f)
	err = errors.Join(err, theirs.close())
	if err != nil {
		return errors.Join(err, ours.close())
	}
	g.server, g.kill = ours, func() { _ = cmd.Process.Kill() } //nolint:errcheck // it may have ended
	go func() { g.inbox <- letter{exited: true, status: exitOf(cmd)} }()
	go g.listen(ours, true)
	return nil
}

// loop passes messages on until there is no more to guard.
func (g *guard) loop() int {
	for {
		l := <-g.inbox
		var over bool
		var err error
		switch {
		case l.exited:
			g.dead, g.status = true, l.status
			err = g.inherit()
		case l.fromServer && l.err != nil:
			over, err = g.gone()
		case l.fromServer:
			err = g.fromServer(l.message)
		case l.err != nil:
			over = g.engineGone()
		default:
			err = g.fromEngine(l.message)
		}
		if err != nil {
			return g.giveUp(err)
		}
		if over {
			return 0
		}
	}
}

// engineGone ends all if the container does not run: the engine's undo, or its
// death, removes it.
func (g *guard) engineGone() (over bool) {
	g.engine, g.asked = link{}, 0
	if g.going {
		return false
	}
	g.kill()
	g.leave()
	return true
}

func (g *guard) fromEngine(m message) error {
	switch m.kind {
	case msgInit, msgImage, msgSpace:
		if err := g.keep(m); err != nil {
			return err
		}
	case msgGo:
		g.going, g.asked = true, m.kind
	case msgSync:
		g.asked = m.kind
	default:
		return fmt.Errorf("message %q from the engine", m.kind)
	}
	_ = g.server.post(m) //nolint:errcheck // its end is heard of
	return nil
}

// keep keeps files that came with a message.
func (g *guard) keep(m message) error {
	switch {
	case m.kind == msgInit && len(m.files) == 1:
		g.init = m.files[0]
	case m.kind == msgHolder && len(m.files) == 1:
		release(g.holder)
		g.holder = m.files[0]
	case m.kind == msgImage && (kept{m.files}).whole():
		g.held = kept{m.files}
	case (m.kind == msgSpace || m.kind == msgForked) && len(m.files) == 1:
		for len(g.spaces) <= int(m.id) {
			g.spaces = append(g.spaces, message{})
		}
		m.kind = msgSpace
		g.spaces[m.id] = m
	default:
		return fmt.Errorf("message %q with %d files", m.kind, len(m.files))
	}
	return nil
}

func (g *guard) fromServer(m message) error {
	switch m.kind {
	case msgAnswer:
		if g.asked != 0 {
			g.asked = 0
			_ = g.engine.send(msgAnswer, 0) //nolint:errcheck // its end is heard of
		}
		return nil
	case msgHolder, msgInit, msgImage, msgSpace: // all but the first, of a server that has no guard yet
		return g.keep(m)
	case msgForked:
		if err := g.keep(m); err != nil {
			return err
		}
	case msgPlan:
		if len(m.files) != 2 {
			return fmt.Errorf("message %q with %d files", m.kind, len(m.files))
		}
		if err := g.held.replace(m.files[0], m.files[1]); err != nil {
			return err
		}
		g.reached = 0
	case msgDropped:
		if int(m.id) < len(g.spaces) {
			return g.spaces[m.id].close()
		}
		return nil
	case msgDone:
		g.done = true
		return nil
	case msgGo:
	default:
		return fmt.Errorf("message %q from the server", m.kind)
	}
	_ = g.server.send(msgAnswer, 0) //nolint:errcheck // its end is heard of
	return nil
}

// inherit takes from the holder what the server had read of last and not told us
// of: a child's userfaultfd. The holder stays until the next server has one, since
// until then there is nobody else but us. It has the other end of the link too:
// what was sent is read, and then comes the end that we make.
func (g *guard) inherit() error {
	if err := unix.Shutdown(g.server.fd(), unix.SHUT_RD); err != nil {
		return fmt.Errorf("shut the link: %w", err)
	}
	if g.holder == nil {
		return nil
	}
	if g.done || g.status == exitDone || g.status == exitFailed {
		return nil
	}
	j, err := openJournal(g.held.journal())
	if err != nil {
		return err
	}
	_, left, err := j.changes()
	err = errors.Join(err, j.close())
	if err != nil || left == nil || left.Event != sys.UFFDFork {
		return err
	}
	fd, err := unix.PidfdGetfd(int(g.holder.Fd()), left.FD, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EBADF) { // the next server finds out whether we have it
		return nil
	}
	if err != nil {
		return fmt.Errorf("userfaultfd of a child: %w", err)
	}
	g.orphan = quiet(fd, "userfaultfd")
	return nil
}

// gone is the end of what the server sent. That of its process is told before or
// after, by whoever waits for it.
func (g *guard) gone() (over bool, err error) {
	for !g.dead {
		l := <-g.inbox
		switch {
		case l.exited:
			g.dead, g.status = true, l.status
			if err := g.inherit(); err != nil {
				return false, err
			}
		case l.err != nil:
			if g.engineGone() {
				return true, nil
			}
		default:
			if err := g.fromEngine(l.message); err != nil {
				return false, err
			}
		}
	}
	return g.buried(g.status)
}

// buried goes on after a server has ended and all that it sent was read.
func (g *guard) buried(status int) (over bool, err error) {
	_ = g.server.close() //nolint:errcheck // nobody is there any more
	g.dead = false
	if g.done || status == exitDone || status == exitFailed {
		g.leave()
		return true, nil
	}
	if !g.held.whole() {
		return false, fmt.Errorf("the server ended before it began, status %d", status)
	}
	j, err := openJournal(g.held.journal())
	if err != nil {
		return false, err
	}
	at := j.count
	if err := errors.Join(g.adoptOrphan(j), j.close()); err != nil {
		return false, err
	}
	if g.deaths++; at != g.reached {
		g.deaths, g.reached = 1, at
	}
	if g.deaths > mostDeaths {
		return false, fmt.Errorf("%d servers in a row have died without doing anything", g.deaths)
	}
	g.log().Warn("the server of lazy pages died: another one goes on", slog.Int("status", status))
	return false, g.another()
}

// leave lets the kernel drop its watch, and only then takes the record away: a
// checkpoint that finds none finds no memory that is watched.
func (g *guard) leave() {
	release(g.holder)
	for i := range g.spaces {
		_ = g.spaces[i].close() //nolint:errcheck // nothing was written
	}
	if g.held.whole() {
		_ = g.held.removeRecord() //nolint:errcheck // nobody waits for one that nobody locks
	}
}

// adoptOrphan keeps the child's userfaultfd that the server had not told us of,
// under the number that the next server gives the child. If it had, there is one.
func (g *guard) adoptOrphan(j *Journal) error {
	if g.orphan == nil {
		return nil
	}
	p, err := readPlan(g.held.plan())
	if err != nil {
		return err
	}
	list, _, err := j.changes()
	if err != nil {
		return err
	}
	id := len(p.Spaces)
	for _, c := range list {
		if c.Event == sys.UFFDFork {
			id++
		}
	}
	if len(g.spaces) > id {
		err = g.orphan.Close()
	} else {
		err = g.keep(message{kind: msgForked, id: uint32(id), files: []*os.File{g.orphan}})
	}
	g.orphan = nil
	return err
}

// another starts a server and tells it all that the dead one was told.
func (g *guard) another() error {
	if err := g.startServer(true); err != nil {
		return err
	}
	if err := g.server.send(msgImage, 0, g.held.files...); err != nil {
		return err
	}
	if g.init != nil {
		if err := g.server.send(msgInit, 0, g.init); err != nil {
			return err
		}
	}
	for _, m := range g.spaces {
		if len(m.files) == 0 {
			continue
		}
		if err := g.server.post(m); err != nil {
			return err
		}
	}
	switch {
	case g.going:
		return g.server.send(msgGo, 0)
	case g.asked != 0:
		return g.server.send(g.asked, 0)
	}
	return nil
}

func (g *guard) log() *slog.Logger {
	if g.held.whole() {
		if p, err := readPlan(g.held.plan()); err == nil {
			return g.openLog(p.LogDir)
		}
	}
	return slog.New(slog.DiscardHandler)
}

// giveUp ends the container: nobody fills its memory any more. Our references to
// it go last.
func (g *guard) giveUp(why error) int {
	g.kill()
	g.log().Error("container killed: its memory can't be filled: " + why.Error()) //nolint:sloglint // for people
	// Without an init nothing runs yet: the engine gets no answer, and fails.
	if g.init == nil {
		return 1
	}
	if err := killContainer(g.init); err != nil {
		g.log().Error("the container could not be killed", slog.Any("err", err))
		select {} // at least nobody reads zeros: our references stay
	}
	return 1
}
