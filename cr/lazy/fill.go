package lazy

import (
	"errors"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/sys"
)

// What the background does.
const (
	fillWorkers = 2
	farWorkers  = 4         // where they wait for another machine
	fillStep    = 256 << 10 // bytes put at a time: a fault waits for one step at most
	fillNice    = 10        // the program and its faults come first
)

// filler hands out steps: the working set of the last run first, then every
// address space from its lowest address on.
type filler struct {
	s *server

	mu   sync.Mutex
	cond *sync.Cond
	set  []window
	at   int    // index of an address space
	from uint64 // an address in it
	busy int    // workers that are at a step
}

// fillBehind starts the workers. The loop is poked when they are done.
func (s *server) fillBehind() {
	f := &filler{s: s, set: s.set.old}
	f.cond = sync.NewCond(&f.mu)
	var running sync.WaitGroup
	workers := fillWorkers
	if s.far {
		workers = farWorkers
	}
	for range workers {
		running.Go(f.work)
	}
	go func() {
		running.Wait()
		s.filled.Store(len(s.fatal) == 0)
		s.poke()
	}()
}

func (f *filler) work() {
	runtime.LockOSThread()                                           // never unlocked: the thread ends with its priority
	_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), fillNice) //nolint:errcheck // then it has the usual one
	for {
		sp, w, ok := f.next()
		if !ok {
			return
		}
		err := f.step(sp, w)
		f.mu.Lock()
		f.busy--
		f.cond.Broadcast()
		f.mu.Unlock()
		if err != nil {
			f.s.report(err)
			return
		}
	}
}

// courtesy is for how long the background lets faults go first before it looks
// again.
func (s *server) courtesy() time.Duration {
	if s.far { // a fault may take as long as another machine
		return 500 * time.Microsecond
	}
	return 20 * time.Microsecond
}

// step puts one window, however often the program comes between.
func (f *filler) step(sp *space, w window) error {
	for {
		for f.s.urgent.Load() > 0 {
			sys.Nap(f.s.courtesy())
		}
		err := f.s.fill(sp, w.start, w.end)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, errChanging):
			sys.Nap(50 * time.Microsecond)
		case errors.Is(err, unix.ESRCH):
			return f.s.drop(sp)
		case errors.Is(err, unix.ENOMEM): // of the container's: somebody ends, or waits for us
			sys.Nap(10 * time.Millisecond)
		default:
			return err
		}
		if len(f.s.fatal) > 0 {
			return nil
		}
	}
}

// window is a range of one address space that is named by its process.
type window struct {
	pid        int32
	start, end uint64
}

// next returns the next step; false when there is nothing to come any more.
func (f *filler) next() (*space, window, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for len(f.s.fatal) == 0 {
		if sp, w, ok := f.find(); ok {
			f.busy++
			return sp, w, true
		}
		if f.s.complete() {
			return nil, window{}, false
		}
		if f.busy > 0 { // what is left is another worker's, or comes back from it
			f.cond.Wait()
		}
		f.at, f.from = 0, 0 // something has moved to where we had been
	}
	return nil, window{}, false
}

func (f *filler) find() (*space, window, bool) {
	st := &f.s.st
	st.mu.Lock()
	defer st.mu.Unlock()
	for len(f.set) > 0 {
		w := f.set[0]
		f.set = f.set[1:]
		for _, sp := range f.s.spaces {
			if sp.pid != w.pid || w.pid == 0 || st.tables.table(sp.id) == nil {
				continue
			}
			if len(st.tables.table(sp.id).Between(w.start, w.end)) > 0 {
				return sp, w, true
			}
		}
	}
	for ; f.at < len(st.tables); f.at, f.from = f.at+1, 0 {
		t := st.tables.table(uint32(f.at))
		if t == nil {
			continue
		}
		if p, ok := t.Next(f.from); ok {
			f.from = min(p.End, p.Start+fillStep)
			return f.s.spaces[f.at], window{0, p.Start, f.from}, true
		}
	}
	return nil, window{}, false
}

// complete says that nothing is to come in any address space.
func (s *server) complete() bool {
	s.st.mu.Lock()
	defer s.st.mu.Unlock()
	for _, b := range s.st.tables {
		if b != nil && !b.table.Empty() {
			return false
		}
	}
	return true
}
