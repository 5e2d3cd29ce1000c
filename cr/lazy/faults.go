package lazy

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/fault"
	"github.com/stasis-cr/stasis/cr/mem"
	"github.com/stasis-cr/stasis/cr/sys"
)

// fault answers one fault: at once if the chunk is there. Chunks from afar may be
// pushed out of the cache before they are used, and the loop must not wait for
// them.
func (s *server) fault(sp *space, m sys.UFFDMsg) error {
	if err := fault.Point("lazy-fault"); err != nil {
		return err
	}
	s.faults.Add(1)
	addr := m.Address &^ (mem.PageSize - 1)
	p, ok := s.st.at(sp, addr)
	if !ok || !s.far && s.cache.has(p.Chunk) {
		return s.answer(sp, addr, m.Write)
	}
	s.serving.Add(1)
	s.urgent.Add(1)
	go func() {
		defer s.serving.Done()
		defer s.urgent.Add(-1)
		if err := s.answer(sp, addr, m.Write); err != nil {
			s.report(err)
		}
	}()
	return nil
}

// report hands an error that ends the container to the loop.
func (s *server) report(err error) {
	select {
	case s.fatal <- err:
	default: // there is one already
	}
	s.poke()
}

// answer puts the page at addr, and what lies around it, and wakes who waits for
// it. Whatever came between, they ask again if it is not there.
func (s *server) answer(sp *space, addr uint64, write bool) error {
	err := s.putAround(sp, addr, write)
	switch {
	case errors.Is(err, unix.ESRCH):
		return s.drop(sp)
	case errors.Is(err, unix.ENOMEM):
		sys.Nap(time.Millisecond) // the kernel is about to end somebody
	case err != nil && !errors.Is(err, errChanging):
		return err
	}
	sp.mu.RLock()
	defer sp.mu.RUnlock()
	if !sp.gone {
		_ = sys.UFFDWake(sp.uffd, addr, addr+mem.PageSize) //nolint:errcheck // it has no other answer than yes
	}
	return nil
}

func (s *server) putAround(sp *space, addr uint64, write bool) error {
	p, ok := s.st.at(sp, addr)
	if ok {
		from := addr &^ (aroundFault - 1)
		p = p.cut(max(p.Start, from), min(p.End, from+aroundFault))
		s.set.note(sp.pid, p.Start, p.End)
		return s.fill(sp, p.Start, p.End)
	}
	sp.mu.RLock()
	defer sp.mu.RUnlock()
	if sp.gone {
		return unix.ESRCH
	}
	if _, ok := s.st.at(sp, addr); ok { // moved here meanwhile: they ask again
		return nil
	}
	return zeroPage(sp, addr, write)
}

// drop gives an address space up that has ended.
func (s *server) drop(sp *space) error {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	if sp.gone {
		return nil
	}
	sp.gone = true
	s.st.mu.Lock()
	_, err := s.st.tables.apply(change{space: sp.id, UFFDMsg: sys.UFFDMsg{Event: eventGone}})
	if err == nil {
		err = s.st.j.append(sp.id, eventGone, 0, 0)
	}
	s.st.mu.Unlock()
	if err != nil {
		return err
	}
	// The guard has the same open file: to close ours would not end the watch.
	if err := unix.EpollCtl(s.epoll, unix.EPOLL_CTL_DEL, sp.fd, nil); err != nil {
		return fmt.Errorf("epoll_ctl: %w", err)
	}
	sp.fd = -1
	if !s.orphaned {
		_ = s.up.send(msgDropped, sp.id) //nolint:errcheck // the loop hears of a guard that is gone
	}
	return sp.uffd.Close()
}
