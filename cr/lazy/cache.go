package lazy

import (
	"sync"

	"github.com/stasis-cr/stasis/cr/mem"
)

// cacheChunks is how many chunks of pages are kept, 1 MiB each. Faults near each
// other hit the same ones.
const cacheChunks = 16

// cache keeps chunks of the store decoded. Safe for concurrent use.
type cache struct {
	read func(i int, buf []byte) ([]byte, error)

	mu    sync.Mutex
	slots map[uint32]*slot
	clock int64
}

// slot is one chunk. b and err are valid once ready is closed.
type slot struct {
	ready chan struct{}
	b     []byte
	err   error

	buf  []byte
	refs int
	used int64
}

func newCache(read func(i int, buf []byte) ([]byte, error)) *cache {
	return &cache{read: read, slots: map[uint32]*slot{}}
}

// has says whether get would answer at once.
func (c *cache) has(i uint32) bool {
	c.mu.Lock()
	s := c.slots[i]
	c.mu.Unlock()
	if s == nil {
		return false
	}
	select {
	case <-s.ready:
		return true
	default:
		return false
	}
}

// get returns the pages of a chunk, valid until put. A chunk is read once for
// all who want it at the same time.
func (c *cache) get(i uint32) (*slot, error) {
	c.mu.Lock()
	s := c.slots[i]
	mine := s == nil
	if mine {
		s = &slot{ready: make(chan struct{}), buf: c.room()}
		c.slots[i] = s
	}
	s.refs++
	c.clock++
	s.used = c.clock
	c.mu.Unlock()
	if mine {
		s.b, s.err = c.read(int(i), s.buf)
		close(s.ready)
	}
	<-s.ready
	if s.err != nil {
		c.put(s)
		return nil, s.err
	}
	return s, nil
}

func (c *cache) put(s *slot) {
	c.mu.Lock()
	s.refs--
	c.mu.Unlock()
}

// room returns a buffer: that of the chunk which nobody has used for the longest
// time, or a new one.
func (c *cache) room() []byte {
	if len(c.slots) >= cacheChunks {
		oldest, found := uint32(0), (*slot)(nil)
		for i, s := range c.slots {
			if s.refs == 0 && (found == nil || s.used < found.used) {
				oldest, found = i, s
			}
		}
		if found != nil {
			delete(c.slots, oldest)
			return found.buf
		}
	}
	return make([]byte, mem.ChunkSize)
}
