package lazy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/mem"
	"github.com/stasis-cr/stasis/cr/pageserver"
	"github.com/stasis-cr/stasis/cr/sys"
)

// server fills the memory of one container.
//
// One thread, the loop, reads all userfaultfds; nobody else does. It answers a
// fault itself if the chunk is decoded already, else a goroutine does. The rest
// is filled by a few background workers.
type server struct {
	up   link // to the guard
	init *os.File
	held kept
	log  *slog.Logger

	// holder is a process that shares our descriptors: the userfaultfd of a child,
	// which the kernel gives to the one who reads of the fork, is in its hands too.
	holder *os.File // pidfd
	plan   *Plan
	st     state
	cache  *cache
	set    workingSet
	far    bool   // chunks come from another machine
	hangUp func() // if they do: nobody waits for it any more
	ended  atomic.Bool
	spaces []*space // appended to by the loop, under st.mu
	epoll  int
	bell   int // eventfd that wakes the loop

	going    bool // the container runs
	urgent   atomic.Int32
	faults   atomic.Int64
	events   map[byte]int // of each kind, those that changed something
	serving  sync.WaitGroup
	filled   atomic.Bool
	fatal    chan error // of the workers
	began    time.Time
	openLog  func(dir string) *slog.Logger
	orphaned bool // the guard is gone, and no other could be started
}

// Exit statuses of a server.
const (
	exitDone   = 0
	exitFailed = 3 // the container was killed
)

// aroundFault is how much is put around a page that is missing, in bytes: to
// copy it costs less than the next fault.
const aroundFault = 64 << 10

// serve runs a server until every page is there.
func serve(up link, openLog func(string) *slog.Logger) (status int) {
	runtime.LockOSThread()                   // the loop's thread: faults must not wait for a thread
	runtime.GOMAXPROCS(runtime.NumCPU() + 2) // a thread in a copy must not keep the loop waiting
	s := &server{
		up: up, openLog: openLog, log: slog.New(slog.DiscardHandler),
		fatal: make(chan error, 1), began: time.Now(), events: map[byte]int{},
	}
	done, err := s.run()
	defer func() { release(s.holder) }()
	switch {
	case err == nil && done:
		return exitDone
	case err == nil: // the restore failed: its own undo removes the container
		return exitFailed
	}
	return s.fail(err)
}

// fail ends the container: what it would read can't be had.
func (s *server) fail(err error) int {
	s.log.Error("container killed: its memory can't be filled: " + err.Error()) //nolint:sloglint // a line for people
	if e := killContainer(s.init); e != nil {
		s.log.Error("the container could not be killed", slog.Any("err", e))
		select {} // at least nobody reads zeros: our references stay
	}
	return exitFailed
}

// killContainer kills a container's init, with it all its processes, and waits
// for the end: with the last reference to a userfaultfd gone before that, a
// thread could yet read zeros.
func killContainer(init *os.File) error {
	if init == nil {
		return errors.New("its init is not known")
	}
	err := unix.PidfdSendSignal(int(init.Fd()), unix.SIGKILL, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("kill init: %w", err)
	}
	return awaitExit(init)
}

// awaitExit waits for the end of a process.
func awaitExit(pidfd *os.File) error {
	p := []unix.PollFd{{Fd: int32(pidfd.Fd()), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(p, -1)
		if n == 1 || err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func (s *server) run() (done bool, err error) {
	if s.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return false, fmt.Errorf("epoll_create: %w", err)
	}
	if s.bell, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return false, fmt.Errorf("eventfd: %w", err)
	}
	for _, fd := range []int{s.bell, s.up.fd()} {
		if err := s.watch(fd); err != nil {
			return false, err
		}
	}
	events := make([]unix.EpollEvent, 64)
	for {
		n, err := unix.EpollWait(s.epoll, events, -1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return false, fmt.Errorf("epoll_wait: %w", err)
		}
		for _, e := range events[:max(n, 0)] {
			if end, err := s.ready(int(e.Fd)); end || err != nil {
				return end && err == nil && s.filled.Load(), err
			}
		}
		if err := s.compact(); err != nil {
			return false, err
		}
	}
}

func (s *server) watch(fd int) error {
	e := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}
	if err := unix.EpollCtl(s.epoll, unix.EPOLL_CTL_ADD, fd, &e); err != nil {
		return fmt.Errorf("epoll_ctl: %w", err)
	}
	return nil
}

// poke has the loop look whether something is to be done.
func (s *server) poke() {
	_, _ = unix.Write(s.bell, []byte{1, 0, 0, 0, 0, 0, 0, 0}) //nolint:errcheck // full: it is going to look
}

// ready handles a descriptor that has something to say. end says that there is
// no more to do.
func (s *server) ready(fd int) (end bool, err error) {
	switch fd {
	case s.up.fd():
		return s.hear()
	case s.bell:
		var b [8]byte
		_, _ = unix.Read(s.bell, b[:]) //nolint:errcheck // it was rung, or not
		select {
		case err := <-s.fatal:
			return false, err
		default:
		}
		if s.filled.Load() {
			return true, s.finish()
		}
		return false, nil
	}
	if s.far && s.init != nil && fd == int(s.init.Fd()) {
		return false, s.over()
	}
	for _, sp := range s.spaces {
		if sp.is(fd) {
			return false, s.attend(sp)
		}
	}
	return false, nil
}

// over is the end of the container: what is asked for of another machine is of use
// to nobody.
func (s *server) over() error {
	s.ended.Store(true)
	s.hangUp()
	if err := unix.EpollCtl(s.epoll, unix.EPOLL_CTL_DEL, int(s.init.Fd()), nil); err != nil {
		return fmt.Errorf("epoll_ctl: %w", err)
	}
	return nil
}

// hear takes a message from the guard.
func (s *server) hear() (end bool, err error) {
	m, err := s.up.recv()
	if errors.Is(err, io.EOF) {
		if !s.going {
			return true, nil
		}
		return false, s.adopt()
	}
	if err != nil {
		return false, err
	}
	switch m.kind {
	case msgInit:
		s.init = m.files[0]
		if s.far { // else nothing takes long, and a copy says that the program ended
			return false, s.watch(int(s.init.Fd()))
		}
	case msgImage:
		s.held = kept{files: m.files}
		return false, s.prepare()
	case msgSpace:
		return false, s.add(m)
	case msgSync:
		return false, s.start(false)
	case msgGo:
		return false, s.start(true)
	}
	return false, nil
}

// prepare reads the plan. What there is of address spaces follows.
func (s *server) prepare() (err error) {
	if s.plan, err = readPlan(s.held.plan()); err != nil {
		return err
	}
	s.log = s.openLog(s.plan.LogDir)
	if s.st.j, err = openJournal(s.held.journal()); err != nil {
		return err
	}
	pages, err := s.pages()
	if err != nil {
		return err
	}
	s.cache = newCache(pages.Chunk)
	s.set.image = s.plan.Image
	s.set.load(s.held.dir(), s.log)
	s.log.Debug("lazy pages", slog.Int("spaces", len(s.plan.Spaces)), slog.Int("working_set", len(s.set.old)))
	return nil
}

// pages opens the page stores, here or where they are served.
func (s *server) pages() (*mem.Pages, error) {
	if s.plan.Remote.Addr == "" {
		return s.held.pages(s.plan.Store)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.far, s.hangUp = true, cancel
	return pageserver.NewClient(s.plan.Remote).Pages(ctx, s.plan.Store, s.held.stores()...), nil
}

func (s *server) add(m message) error {
	id, uffd := m.id, m.files[0]
	for uint32(len(s.spaces)) < id { // given up before this server began
		s.spaces = append(s.spaces, &space{id: uint32(len(s.spaces)), gone: true, fd: -1})
	}
	sp := &space{id: id, uffd: uffd, fd: int(uffd.Fd()), hostPID: int(m.pid)}
	if int(id) < len(s.plan.Spaces) {
		sp.pid = s.plan.Spaces[id].PID
	}
	s.st.mu.Lock()
	s.spaces = append(s.spaces, sp)
	s.st.mu.Unlock()
	return nil
}

// start begins to serve what was added. Whoever waited for a server that died
// asks again.
func (s *server) start(going bool) error {
	if s.st.tables == nil {
		if err := s.hold(); err != nil {
			return err
		}
		if err := s.recover(); err != nil {
			return err
		}
		for _, sp := range s.spaces {
			if err := s.begin(sp); err != nil {
				return err
			}
		}
	}
	if going && !s.going {
		s.going = true
		s.log.Debug("filling behind the program")
		s.fillBehind()
	}
	return s.up.send(msgAnswer, 0)
}

// hold starts the holder, and tells the guard.
func (s *server) hold() error {
	pid, err := sys.ForkHolder(int(s.init.Fd()))
	if err != nil {
		return fmt.Errorf("holder: %w", err)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return errors.Join(fmt.Errorf("pidfd of the holder: %w", err), unix.Kill(pid, unix.SIGKILL))
	}
	s.holder = os.NewFile(uintptr(fd), "pidfd of the holder")
	return s.up.send(msgHolder, 0, s.holder)
}

// release ends the holder, when there is nothing to hold, and waits until all that
// it held is closed.
func release(holder *os.File) {
	if holder == nil || unix.PidfdSendSignal(int(holder.Fd()), unix.SIGKILL, nil, 0) != nil {
		return
	}
	_ = awaitExit(holder) //nolint:errcheck // it can't do without us
}

// recover does what the journal says, and what a server that died had begun.
func (s *server) recover() error {
	ts, left, err := replay(s.plan, s.st.j, len(s.spaces))
	if err != nil {
		return err
	}
	s.st.mu.Lock()
	defer s.st.mu.Unlock()
	s.st.tables = ts
	if left != nil && int(left.space) < len(s.spaces) {
		err = s.understand(s.spaces[left.space], left.UFFDMsg)
	}
	if err == nil && len(s.st.tables) > len(s.spaces) {
		err = fmt.Errorf("%d address spaces are known, and %d userfaultfds", len(s.st.tables), len(s.spaces))
	}
	return err
}

// begin serves an address space. Faults that a server which died had read are
// asked for again.
func (s *server) begin(sp *space) error {
	if sp.gone {
		return nil
	}
	if err := unix.SetNonblock(sp.fd, true); err != nil {
		return fmt.Errorf("userfaultfd: %w", err)
	}
	if err := s.watch(sp.fd); err != nil {
		return err
	}
	if err := sys.UFFDWake(sp.uffd, wakeFrom, wakeTo); err != nil {
		return fmt.Errorf("wake: %w", err)
	}
	return nil
}

// All addresses that a task can have on x86-64, above what vm.mmap_min_addr may
// forbid (validate_range in fs/userfaultfd.c).
const (
	wakeFrom = 1 << 20
	wakeTo   = 1<<47 - mem.PageSize
)

// finish ends the service: every page is there, and faults are none of ours.
func (s *server) finish() error {
	s.serving.Wait()
	s.set.save(s.held.dir(), s.log)
	s.log.Info("every page is there", slog.Duration("took", time.Since(s.began)),
		slog.Int64("faults", s.faults.Load()), slog.Int("spaces", len(s.spaces)),
		slog.Int("forks", s.events[sys.UFFDFork]), slog.Int("moves", s.events[sys.UFFDRemap]),
		slog.Int("drops", s.events[sys.UFFDRemove]), slog.Int("unmaps", s.events[sys.UFFDUnmap]),
		slog.Int("owed", s.events[0]))
	if s.orphaned {
		return nil
	}
	_ = s.up.send(msgDone, 0) //nolint:errcheck // a guard that is gone needs no telling
	return nil
}
