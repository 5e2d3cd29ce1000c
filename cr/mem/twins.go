package mem

import (
	"encoding/binary"
	"math/bits"
	"sync"
	"sync/atomic"

	"github.com/stasis-cr/stasis/cr/blob"
)

// The table of pages that a store has seen: so many sets of so many places. Its
// size is fixed, 2 MiB for the last 2^18 different pages (1 GiB), give or take
// what falls into the same set. It is that small to stay in the cache.
const (
	twinSets  = 1 << 16
	twinWays  = 4
	twinLocks = 64 // one lock for every so many sets
)

// slot is where a page is stored.
type slot struct{ chunk, page uint32 }

// seen is one page of the table: the end of its fingerprint, of which the set is
// the beginning, and its slot as 24 bits of chunk and 8 of page. It is none if
// the former is zero.
type seen struct{ print, at uint32 }

// twinChunks is how many chunks the table can name: 16 TiB.
const twinChunks = 1 << 24

func (s seen) slot() slot { return slot{s.at / chunkPages, s.at % chunkPages} }

func see(mark uint64, at slot) seen { return seen{uint32(mark), at.chunk*chunkPages + at.page} }

// twins finds pages that may have been stored before: their fingerprints are the
// same, and whoever asks compares the bytes. docs/adr/0007-page-store.md says
// why. It is safe for concurrent use.
type twins struct {
	locks [twinLocks]twinLock
	sets  []twinSet
}

// twinLock has a cache line for itself: workers take one after the other of them,
// for less time than it takes to bring a line from another CPU.
type twinLock struct {
	sync.Mutex
	_ [56]byte
}

func newTwins() *twins { return &twins{sets: make([]twinSet, twinSets)} }

// fingerprint mixes one word of each cache line of a page, by turns the first to
// the eighth, in four lanes that the processor works on at once. It is never zero.
func fingerprint(page []byte) uint64 {
	const mix = 0x9e3779b97f4a7c15
	page = page[:PageSize]
	a, b, c, d := uint64(1), uint64(2), uint64(3), uint64(4)
	for i := 0; i < PageSize; i += 8 * 64 { // eight lines, of which the n-th gives its n-th word
		word := func(n int) uint64 { return binary.LittleEndian.Uint64(page[i+n*(64+8):]) }
		a = bits.RotateLeft64((a^word(0))*mix, 31)
		b = bits.RotateLeft64((b^word(1))*mix, 31)
		c = bits.RotateLeft64((c^word(2))*mix, 31)
		d = bits.RotateLeft64((d^word(3))*mix, 31)
		a = bits.RotateLeft64((a^word(4))*mix, 31)
		b = bits.RotateLeft64((b^word(5))*mix, 31)
		c = bits.RotateLeft64((c^word(6))*mix, 31)
		d = bits.RotateLeft64((d^word(7))*mix, 31)
	}
	h := ((a*mix^b)*mix^c)*mix ^ d
	h *= mix
	return h ^ h>>32 | 1
}

// meet says where the last page with this fingerprint is. If there is none, the
// page is going to be where fresh says, and is remembered.
func (t *twins) meet(mark uint64, fresh nextSlot) (at slot, met bool) {
	i := mark >> 40 % twinSets
	t.locks[i%twinLocks].Lock()
	defer t.locks[i%twinLocks].Unlock()
	set := &t.sets[i]
	// To read memory that is new maps the page of zeros, and to write there then takes
	// a second fault, and a call to every CPU to forget it. So it is written to first.
	atomic.AddUint32(&set[0].print, 0)
	for n := range set {
		if set[n].print == uint32(mark) {
			return set[n].slot(), true
		}
	}
	at = fresh.next()
	if at.chunk < twinChunks {
		set.push(twinWays-1, see(mark, at))
	}
	return at, false
}

// nextSlot gives out the place of a page that has to be stored.
type nextSlot interface{ next() slot }

// remember puts a page that was met in front of its set, with the place that it
// has now.
func (t *twins) remember(mark uint64, at slot) {
	i := mark >> 40 % twinSets
	t.locks[i%twinLocks].Lock()
	defer t.locks[i%twinLocks].Unlock()
	set := &t.sets[i]
	n := 0
	for n < twinWays-1 && set[n].print != uint32(mark) {
		n++
	}
	if at.chunk < twinChunks {
		set.push(n, see(mark, at))
	}
}

// twinSet holds pages whose fingerprints begin alike, the one that was of use
// last in front.
type twinSet [twinWays]seen

// push puts s in front and drops the n-th.
func (set *twinSet) push(n int, s seen) {
	copy(set[1:n+1], set[:n])
	set[0] = s
}

// A compressed chunk is unpacked to compare pages with it only as long as that
// pays: it must give so many twins each time on average, but for the first few.
const (
	unpackFree  = 32
	twinsPerOne = 16
)

// readBack reads stored pages again. A store lends one to each worker.
type readBack struct {
	store *Store
	chunk uint32 // that raw is of, if have
	have  bool
	raw   []byte // ChunkSize, once there was a chunk to unpack
	page  []byte // PageSize
}

func newReadBack(s *Store) *readBack {
	return &readBack{store: s, page: make([]byte, PageSize)}
}

// same says whether the page that is stored at a slot has these bytes. The answer
// is no if its chunk is not written yet, or costs too much to unpack.
func (r *readBack) same(at slot, page []byte) (bool, error) {
	c := r.store.chunk(at.chunk)
	switch {
	case c.Raw == 0:
		return false, nil
	case c.Codec == blob.Chunk_RAW:
		_, err := r.store.back.stores[c.Store].ReadAt(r.page, int64(c.Offset)+int64(at.page)*PageSize)
		return err == nil && string(r.page) == string(page), err
	case !r.have || r.chunk != at.chunk:
		if !r.store.worth.more() {
			return false, nil
		}
		if r.raw == nil {
			r.raw = make([]byte, ChunkSize)
		}
		r.have = false
		if _, err := r.store.back.read(c, r.raw); err != nil {
			return false, err
		}
		r.chunk, r.have = at.chunk, true
	}
	return string(r.raw[at.page*PageSize:(at.page+1)*PageSize]) == string(page), nil
}

// worth weighs what unpacking costs against what it gives.
type worth struct{ unpacked, twins atomic.Int64 }

func (w *worth) more() bool {
	if w.unpacked.Load() >= unpackFree+w.twins.Load()/twinsPerOne {
		return false
	}
	w.unpacked.Add(1)
	return true
}
