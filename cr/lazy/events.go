package lazy

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/fault"
	"github.com/stasis-cr/stasis/cr/procfs"
	"github.com/stasis-cr/stasis/cr/sys"
)

// attend reads all that an address space has to say, and then serves the faults:
// they are told of before the events that came first (userfaultfd_ctx_read).
func (s *server) attend(sp *space) error {
	var waiting []sys.UFFDMsg
	for {
		m, more, err := s.read(sp)
		if err != nil {
			return err
		}
		if !more {
			break
		}
		if m.Event == sys.UFFDPageFault {
			waiting = append(waiting, m)
		}
	}
	s.urgent.Add(1)
	defer s.urgent.Add(-1)
	for _, m := range waiting {
		if err := s.fault(sp, m); err != nil {
			return err
		}
	}
	return nil
}

// read reads one message into the journal and does what it says.
func (s *server) read(sp *space) (m sys.UFFDMsg, more bool, err error) {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	if sp.gone { // somebody else has found that it ended
		return m, false, nil
	}
	s.st.mu.Lock()
	defer s.st.mu.Unlock()
	b, err := s.st.j.tail(sp.id)
	if err != nil {
		return m, false, err
	}
	n, err := unix.Read(sp.fd, b)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
		return m, errors.Is(err, unix.EINTR), nil
	}
	if err != nil || n != len(b) {
		return m, false, fmt.Errorf("read a userfaultfd: %d bytes: %w", n, err)
	}
	if m, err = sys.ParseUFFDMsg(b); err != nil {
		return m, false, err
	}
	if m.Event == sys.UFFDPageFault {
		s.st.j.drop()
		return m, true, nil
	}
	return m, true, s.event(sp, m)
}

// event follows what the program did. Precondition: sp.mu and st.mu are held,
// and the message is at the journal's tail.
func (s *server) event(sp *space, m sys.UFFDMsg) error {
	if err := fault.Point("lazy-event"); err != nil {
		return err
	}
	if m.Event == sys.UFFDFork {
		if err := s.forked(m); err != nil {
			return err
		}
	}
	if err := s.understand(sp, m); err != nil {
		return err
	}
	return fault.Point("lazy-kept")
}

// understand does to the book of sp what the message at the journal's tail says.
// Precondition: st.mu is held, and sp.mu or nobody else is there.
func (s *server) understand(sp *space, m sys.UFFDMsg) error {
	c := change{space: sp.id, calm: sp.calm.Load(), UFFDMsg: m}
	if err := s.doubt(sp, c); err != nil {
		return err
	}
	s.st.j.judge(c.calm)
	changed, err := s.st.tables.apply(c)
	if err != nil {
		return err
	}
	if !changed {
		s.st.j.drop()
		return nil
	}
	s.st.j.keep()
	sp.calm.Store(false)
	s.events[m.Event]++
	return nil
}

// doubt looks at the program's mappings before a departure is taken for one that
// is owed, since before other memory came there: the other must be there still,
// or it may as well be its own.
func (s *server) doubt(sp *space, c change) error {
	b, end := s.st.tables[sp.id], c.End
	if c.Event == sys.UFFDRemap {
		end = c.Start + c.Size
	}
	if b == nil || c.calm || c.Event != sys.UFFDRemap && c.Event != sys.UFFDUnmap {
		return nil
	}
	parts := b.doubtful(c.Start, end)
	echo := c.Event == sys.UFFDUnmap && slices.Contains(b.echoes, extent{c.Start, c.End})
	if len(parts) == 0 || sp.hostPID == 0 || echo {
		return nil
	}
	s.events[0]++
	maps, err := procfs.ReadSMaps(sp.hostPID)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) { // it has ended, and nothing matters
		return nil
	}
	if err != nil {
		return fmt.Errorf("mappings of process %d: %w", sp.hostPID, err)
	}
	for i := range maps {
		if v := &maps[i]; v.Flags&procfs.VMUffdMissing != 0 {
			parts = without(parts, v.Start, v.End)
		}
	}
	if len(parts) > 0 {
		return errAmbiguous
	}
	return nil
}

// forked takes a child's userfaultfd. The guard has it before it counts.
func (s *server) forked(m sys.UFFDMsg) error {
	if err := fault.Point("lazy-forked"); err != nil {
		return err
	}
	child := &space{id: uint32(len(s.spaces)), uffd: quiet(m.FD, "userfaultfd"), fd: m.FD}
	unix.CloseOnExec(m.FD)
	if err := s.tell(msgForked, child.id, child.uffd); err != nil {
		return err
	}
	if err := unix.SetNonblock(child.fd, true); err != nil {
		return fmt.Errorf("userfaultfd of a child: %w", err)
	}
	s.spaces = append(s.spaces, child)
	return s.watch(child.fd)
}

// tell asks the guard to keep files. A guard that is gone is replaced by one that
// gets all there is; else the server goes on alone.
func (s *server) tell(k kind, id uint32, files ...*os.File) error {
	if s.orphaned {
		return nil
	}
	if err := s.up.ask(k, id, files...); err != nil {
		s.log.Warn("the guard does not answer", slog.Any("err", err))
	}
	return nil // the end of the link is heard by the loop
}
