package lazy

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/cr/fault"
	"github.com/stasis-cr/stasis/cr/mem"
	"github.com/stasis-cr/stasis/cr/sys"
)

// space is one address space that is being filled.
type space struct {
	id   uint32
	pid  int32 // in the container; 0: born since
	uffd *os.File
	fd   int

	hostPID int // in our own namespace; 0: not known

	// mu is held shared to put pages, and alone to read an event and to change
	// the table by it: see the package's description.
	mu   sync.RWMutex
	gone bool

	// calm says that pages were put since the last event: the kernel would have
	// refused if an event had been outstanding.
	calm atomic.Bool
}

// is says whether fd is that of the space.
func (sp *space) is(fd int) bool {
	sp.mu.RLock()
	defer sp.mu.RUnlock()
	return !sp.gone && sp.fd == fd
}

// state is what all threads of a server change: the tables, and the journal that
// a new server would make them from. Lock order: space.mu, then mu.
type state struct {
	mu     sync.Mutex
	tables tables
	j      *Journal
}

func (st *state) at(sp *space, addr uint64) (Piece, bool) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if t := st.tables.table(sp.id); t != nil {
		return t.At(addr)
	}
	return Piece{}, false
}

func (st *state) between(sp *space, start, end uint64) []Piece {
	st.mu.Lock()
	defer st.mu.Unlock()
	if t := st.tables.table(sp.id); t != nil {
		return t.Between(start, end)
	}
	return nil
}

// done notes that pages are there. It says whether the journal fills up.
func (st *state) done(sp *space, start, end uint64) (full bool, err error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	t := st.tables.table(sp.id)
	if t == nil {
		return false, nil
	}
	if err := st.j.append(sp.id, eventDone, start, end); err != nil {
		return false, err
	}
	t.Remove(start, end)
	return st.j.full(), nil
}

// errChanging says that the program changes its mappings: read the events, and
// try again.
var errChanging = errors.New("mappings are being changed")

// fill puts what is still to come in [start, end). An error is errChanging, or
// wraps ESRCH when the program ended, ENOMEM when its memory is used up, or is
// one that ends the container.
func (s *server) fill(sp *space, start, end uint64) error {
	for _, p := range s.st.between(sp, start, end) {
		if err := s.bring(sp, p); err != nil {
			return err
		}
	}
	return nil
}

// bring puts what is still to come of one piece. Its chunk is read before the lock
// is taken: that may take long, and events must not wait for it. What has moved
// away meanwhile is asked for again at its new place.
func (s *server) bring(sp *space, p Piece) error {
	c, err := s.cache.get(p.Chunk)
	if err == nil {
		defer s.cache.put(c)
	}
	sp.mu.RLock()
	defer sp.mu.RUnlock()
	if sp.gone {
		return unix.ESRCH
	}
	for _, q := range s.st.between(sp, p.Start, p.End) {
		if q.Chunk != p.Chunk {
			continue
		}
		if err != nil && s.ended.Load() {
			return unix.ESRCH
		}
		if err != nil {
			return &errs.Error{PID: int(sp.pid), Obj: errs.Range{Start: q.Start, End: q.End}, Err: err}
		}
		if err := s.put(sp, q, c); err != nil {
			return err
		}
	}
	return nil
}

// put puts a piece of a chunk. Precondition: sp.mu is held.
func (s *server) put(sp *space, p Piece, c *slot) error {
	at, size := uint64(p.Page)*mem.PageSize, p.End-p.Start
	if at+size > uint64(len(c.b)) {
		return fmt.Errorf("chunk %d has no page %d: %w", p.Chunk, p.Page, errs.ErrCorrupt)
	}
	n, err := copyPages(sp.uffd, p.Start, c.b[at:at+size])
	if e := fault.Point("lazy-copied"); e != nil {
		return e
	}
	if n > 0 {
		sp.calm.Store(true)
		full, e := s.st.done(sp, p.Start, p.Start+n)
		if e != nil {
			return e
		}
		if full {
			s.poke()
		}
	}
	return err
}

// copyPages puts pages at an address and returns how many bytes from there on
// need nobody any more: they are there, or nobody has a place for them.
func copyPages(uffd *os.File, at uint64, b []byte) (done uint64, err error) {
	size, absent := len(b), 0
	for len(b) > 0 {
		n, err := sys.UFFDCopy(uffd, at, b[:min(size, len(b))], true)
		switch {
		case n > 0: // what stopped it comes up again at the next page
			absent = 0
		case errors.Is(err, unix.EEXIST):
			n = mem.PageSize // another copy, of the same bytes
		case errors.Is(err, unix.EAGAIN):
			return done, errChanging
		case errors.Is(err, unix.ENOENT) && size > mem.PageSize:
			// The range is not all of one mapping that is watched: page by page.
			size = mem.PageSize
			continue
		case errors.Is(err, unix.ENOENT):
			// No place for it: in a child of a parent with MADV_DONTFORK, say. The
			// kernel looks for the mapping before it looks whether one is changing
			// (mfill_atomic in mm/userfaultfd.c); a second try tells the two apart,
			// since no event is read meanwhile.
			if absent++; absent < 2 {
				continue
			}
			n, absent = mem.PageSize, 0
		default:
			return done, fmt.Errorf("memory %x-%x: %w", at, at+uint64(len(b)), err)
		}
		at, done, b = at+uint64(n), done+uint64(n), b[n:]
	}
	return done, nil
}

// zeroPage serves a page that is in no table. Precondition: sp.mu is held.
func zeroPage(sp *space, addr uint64, write bool) error {
	var err error
	if write { // at once with a page of its own: no second fault to replace the shared one
		_, err = sys.UFFDCopy(sp.uffd, addr, zeros[:], true)
	} else {
		_, err = sys.UFFDZero(sp.uffd, addr, addr+mem.PageSize, true)
	}
	switch {
	case err == nil:
		sp.calm.Store(true)
		return nil
	case errors.Is(err, unix.EEXIST), errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.EAGAIN):
		return errChanging
	}
	return fmt.Errorf("memory %x-%x: %w", addr, addr+mem.PageSize, err)
}

var zeros [mem.PageSize]byte
