package lazy

import (
	"errors"
	"fmt"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/sys"
)

// Features are what a userfaultfd of a space is asked for: to be told of all that
// changes what is missing.
const Features = sys.UFFDEventFork | sys.UFFDEventRemap | sys.UFFDEventRemove | sys.UFFDEventUnmap

// Supported says why this host can't restore lazily; nil if it can.
func Supported() error {
	device, err := os.OpenFile("/dev/userfaultfd", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer device.Close() //nolint:errcheck // nothing was written
	fd, err := unix.IoctlRetInt(int(device.Fd()), sys.IoctlUFFDNew)
	if err != nil {
		return fmt.Errorf("/dev/userfaultfd: %w", err)
	}
	uffd := os.NewFile(uintptr(fd), "userfaultfd")
	defer uffd.Close() //nolint:errcheck // nothing was written
	if _, err := sys.UFFDHandshake(uffd, Features); err != nil {
		return fmt.Errorf("userfaultfd with features %#x: %w", uint64(Features), err)
	}
	return nil
}

// Session is the engine's side: guard and server of one container, from before
// it is made until it runs.
type Session struct {
	up  link
	cmd *exec.Cmd
}

// Files are what a session works with. They stay the caller's.
type Files struct {
	// Stores are the page stores, the image's own first; at most MostStores. If the
	// plan has a Remote they are those of earlier checkpoints, or none.
	Stores []*os.File
	Record *os.File // locked as long as the container is lazy
	Dir    *os.File // of the image, for the working set
}

// Start starts guard and server of a plan. Call it early: they take some
// milliseconds to begin. Until Go they end with us; the caller ends the session
// with Close or Abort.
func Start(p *Plan, f Files) (_ *Session, err error) {
	plan, err := p.file()
	if err != nil {
		return nil, err
	}
	defer plan.Close() //nolint:errcheck // the guard has it
	journal, err := newJournal(journalEntries)
	if err != nil {
		return nil, err
	}
	defer journal.Close() //nolint:errcheck // the guard has it
	ours, theirs, err := newLink()
	if err != nil {
		return nil, err
	}
	cmd, err := start(guardVerb, false, theirs.f)
	err = errors.Join(err, theirs.close())
	if err != nil {
		return nil, errors.Join(err, ours.close())
	}
	s := &Session{ours, cmd}
	files := append([]*os.File{plan, journal, f.Record, f.Dir}, f.Stores...)
	if err := s.up.send(msgImage, 0, files...); err != nil {
		return nil, errors.Join(err, s.Abort())
	}
	return s, nil
}

// Init names the init of the container: who is killed if its memory can't be
// filled.
func (s *Session) Init(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("pidfd of init: %w", err)
	}
	f := os.NewFile(uintptr(fd), "pidfd of init")
	return errors.Join(s.up.send(msgInit, 0, f), f.Close())
}

// Watch hands over the userfaultfd of the plan's address space of that number,
// which is registered, and is that of pid. It stays the caller's.
func (s *Session) Watch(space, pid int, uffd *os.File) error {
	return s.up.post(message{msgSpace, uint32(space), uint32(pid), []*os.File{uffd}})
}

// Serve waits until faults are served. Precondition: Init was called, and Watch
// for every space of the plan, in their order.
func (s *Session) Serve() error { return s.up.ask(msgSync, 0) }

// Go lets the background begin, and guard and server live on without us. The
// container may run from then on.
func (s *Session) Go() error { return s.up.ask(msgGo, 0) }

// Close ends the session after Go.
func (s *Session) Close() error {
	if s.up.f == nil {
		return nil
	}
	err := s.up.close()
	s.up.f = nil
	go exitOf(s.cmd) // if we are still there when it ends
	return err
}

// Abort ends guard and server, and waits for that. Once the container runs, they
// end when it is gone. After Close it does nothing.
func (s *Session) Abort() error {
	if s.up.f == nil {
		return nil
	}
	err := s.up.close()
	s.up.f = nil
	exitOf(s.cmd)
	return err
}
