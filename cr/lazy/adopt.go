package lazy

import (
	"errors"
	"fmt"
	"log/slog"
	"os"

	"golang.org/x/sys/unix"
)

// adopt starts a new guard for a server whose guard is gone, and hands it all
// that there is. Without one the server goes on alone, and as fast as it can.
func (s *server) adopt() error {
	if err := unix.EpollCtl(s.epoll, unix.EPOLL_CTL_DEL, s.up.fd(), nil); err != nil {
		return fmt.Errorf("epoll_ctl: %w", err)
	}
	_ = s.up.close() //nolint:errcheck // nobody is there any more
	err := s.newGuard()
	if err == nil {
		err = s.brief()
	}
	if err != nil {
		s.orphaned = true
		s.log.Warn("the guard of lazy pages died, and there is no other", slog.Any("err", err))
		return nil
	}
	s.log.Warn("the guard of lazy pages died: another one is there")
	return s.watch(s.up.fd())
}

func (s *server) newGuard() error {
	pidfd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return fmt.Errorf("pidfd_open: %w", err)
	}
	self := os.NewFile(uintptr(pidfd), "pidfd")
	defer self.Close() //nolint:errcheck // the guard has its own
	ours, theirs, err := newLink()
	if err != nil {
		return err
	}
	cmd, err := start(adoptVerb, true, theirs.f, self)
	err = errors.Join(err, theirs.close())
	if err != nil {
		return errors.Join(err, ours.close())
	}
	go exitOf(cmd)
	s.up = ours
	return nil
}

// brief tells a new guard what the old one knew.
func (s *server) brief() error {
	if err := s.up.send(msgImage, 0, s.held.files...); err != nil {
		return err
	}
	if err := s.up.send(msgInit, 0, s.init); err != nil {
		return err
	}
	if err := s.up.send(msgHolder, 0, s.holder); err != nil {
		return err
	}
	s.st.mu.Lock()
	defer s.st.mu.Unlock()
	for _, sp := range s.spaces {
		if sp.gone || s.st.tables[sp.id] == nil {
			continue
		}
		if err := s.up.post(message{msgSpace, sp.id, uint32(sp.hostPID), []*os.File{sp.uffd}}); err != nil {
			return err
		}
	}
	return s.up.ask(msgGo, 0)
}
