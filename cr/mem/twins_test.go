package mem

import (
	"bytes"
	"errors"
	"os"
	"testing"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/errs"
)

// always is the next slot.
type always slot

func (a always) next() slot { return slot(a) }

// TestTwinsKeepWhatIsOfUse: a set holds as many pages as it has ways, and the one
// that was not asked for longest leaves it.
func TestTwinsKeepWhatIsOfUse(t *testing.T) {
	tw := newTwins()
	ask := func(n uint64, known bool) { // all fall into set 0
		t.Helper()
		print, at := n<<1|1, slot{uint32(n), uint32(n) + 1}
		got, met := tw.meet(print, always(at))
		if met != known || got != at {
			t.Errorf("page %d: at %v, known %v, want %v", n, got, met, known)
		}
		if met {
			tw.remember(print, at)
		}
	}
	for n := range uint64(twinWays) {
		ask(n, false)
	}
	for n := range uint64(twinWays) {
		ask(n, true)
	}
	ask(twinWays, false) // which takes the place of 0
	for n := uint64(1); n <= twinWays; n++ {
		ask(n, true)
	}
	ask(0, false) // which takes that of 1
	ask(1, false)
	ask(twinWays, true)
}

// TestFingerprint: a word of each line counts, and its place does.
func TestFingerprint(t *testing.T) {
	page := make([]byte, PageSize)
	prints := map[uint64]int{fingerprint(page): -1}
	for i := range 64 {
		at := i*64 + i%8*8
		page[at+i%8] = 1
		f := fingerprint(page)
		if was, twice := prints[f]; twice || f == 0 {
			t.Errorf("bytes %d and %d give one fingerprint", was, at)
		}
		prints[f] = at
		page[at+i%8] = 0
	}
}

// alike is a page that has the fingerprint of page and other bytes.
func alike(t *testing.T, page []byte) []byte {
	t.Helper()
	other := bytes.Clone(page)
	other[8] ^= 1
	if fingerprint(other) != fingerprint(page) {
		t.Fatal("the fingerprint looks at the ninth byte")
	}
	return other
}

// packAll stores jobs of these pages, one after the other.
func packAll(t *testing.T, s *Store, jobs ...[]byte) []*packer {
	t.Helper()
	var out []*packer
	for _, raw := range jobs {
		j := &job{buf: loan{b: bytes.Clone(raw)}, pages: len(raw) / PageSize, spans: []span{{end: uint64(len(raw))}}}
		p, err := pack(j, s)
		if err == nil && p.kept > 0 {
			err = s.put(p.chunk, p.raw[:p.kept*PageSize])
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, p)
	}
	return out
}

// TestTwins: pages are found in the chunk itself and in others, whatever their
// codec, and only if every byte is the same.
func TestTwins(t *testing.T) {
	for _, codec := range codecs() {
		f := tempFile(t)
		s := NewStore(f, StoreOptions{Codec: codec})
		text := prose(1, 3*PageSize)
		a, b, c := text[:PageSize], text[PageSize:2*PageSize], text[2*PageSize:]
		jobs := [][]byte{
			bytes.Join([][]byte{a, b, a, alike(t, a)}, nil), // a is found by its newest page only
			bytes.Join([][]byte{b, c}, nil),
			bytes.Join([][]byte{b, c, b, c}, nil),
			alike(t, b),
			alike(t, b),
		}
		kept := []int{3, 1, 0, 1, 0}
		for i, p := range packAll(t, s, jobs...) {
			if p.kept != kept[i] {
				t.Errorf("%s: job %d: %d pages kept, want %d", codec, i, p.kept, kept[i])
			}
			for _, e := range p.extents {
				raw, err := OpenPages(s.Index("p"), f).Chunk(int(e.Chunk), make([]byte, ChunkSize))
				if err != nil {
					t.Fatal(err)
				}
				got, want := raw[e.Page*PageSize:(e.Page+e.Pages)*PageSize], jobs[i][e.Start:e.Start+uint64(e.Pages)*PageSize]
				if !bytes.Equal(got, want) {
					t.Errorf("%s: job %d: pages at %d are others", codec, i, e.Start)
				}
			}
		}
		if n := len(s.Index("p").Chunks); n != 3 {
			t.Errorf("%s: %d chunks", codec, n)
		}
	}
}

// TestTwinsAreNotWaitedFor: a page of a chunk that is not written yet is stored
// again.
func TestTwinsAreNotWaitedFor(t *testing.T) {
	s := NewStore(tempFile(t), StoreOptions{})
	page := noise(1, PageSize)
	for range 2 {
		p, err := pack(&job{buf: loan{b: bytes.Clone(page)}, pages: 1, spans: []span{{end: PageSize}}}, s)
		if err != nil || p.kept != 1 {
			t.Errorf("%d pages kept, %v", p.kept, err)
		}
	}
}

// TestUnpackingIsBounded: pages whose fingerprints lie must not make every chunk
// be unpacked for nothing.
func TestUnpackingIsBounded(t *testing.T) {
	s := NewStore(tempFile(t), StoreOptions{Codec: blob.Chunk_S2})
	for i := range 4 * unpackFree {
		page := prose(7, PageSize)
		page[8], page[9] = byte(i), byte(i>>8) // where the fingerprint does not look
		if p := packAll(t, s, page)[0]; p.kept != 1 {
			t.Fatalf("page %d was dropped", i)
		}
	}
	if n := s.worth.unpacked.Load(); n != unpackFree {
		t.Errorf("%d chunks unpacked for nothing, want %d", n, unpackFree)
	}
}

// TestTwinOfADamagedPage: what can't be read again is no twin, but an error.
func TestTwinOfADamagedPage(t *testing.T) {
	f := tempFile(t)
	s := NewStore(f, StoreOptions{Codec: blob.Chunk_S2})
	page := prose(1, PageSize)
	packAll(t, s, page)
	if err := os.Truncate(f.Name(), 10); err != nil {
		t.Fatal(err)
	}
	_, err := pack(&job{buf: loan{b: bytes.Clone(page)}, pages: 1, spans: []span{{end: PageSize}}}, s)
	if !errors.Is(err, errs.ErrCorrupt) {
		t.Errorf("damaged: %v", err)
	}
}

// TestTwinsOfTasks saves the memory of a helper, that of another one that holds
// the same, and that of the first again.
func TestTwinsOfTasks(t *testing.T) {
	needsPagemapScan(t)
	a, b := startHelper(t), startHelper(t)
	names := []string{"random", "readonly", "mixed", "file"}
	f := tempFile(t)
	store := NewStore(f, StoreOptions{Codec: blob.Chunk_ZSTD})
	var size int64
	for i, h := range []*helper{a, b, a} {
		s := NewSaver(t.Context(), store, SaverOptions{})
		mm := h.mm(names...)
		if err := errors.Join(s.AddressSpace(h.PID, mm, false, nil), s.Wait()); err != nil {
			t.Fatal(err)
		}
		if i > 0 && store.Size() != size {
			t.Errorf("space %d: %d bytes more", i, store.Size()-size)
		}
		size = store.Size()
		pages := (&saved{f, store.Index("p")}).pages(t, mm.Extents)
		for _, n := range names {
			p := h.Places[n]
			is := peek(t, h.PID, p)
			for at := p.Start; at < p.End; at += PageSize {
				real := is[at-p.Start : at-p.Start+PageSize]
				if b, ok := pages[at]; ok && !bytes.Equal(b, real) || !ok && !p.File && !bytes.Equal(real, zeroPage[:]) {
					t.Fatalf("space %d, %s: page %d is wrong", i, n, (at-p.Start)/PageSize)
				}
			}
		}
	}
}

// BenchmarkPack looks for twins where there are none.
func BenchmarkPack(b *testing.B) {
	const different = 64
	raw := noise(1, different*ChunkSize)
	store := NewStore(nil, StoreOptions{})
	b.SetBytes(ChunkSize)
	for n := 0; b.Loop(); n++ {
		at := n % different * ChunkSize
		j := &job{buf: loan{b: raw[at : at+ChunkSize]}, pages: chunkPages, spans: []span{{end: ChunkSize}}}
		if n%different == 0 {
			store.twins, store.chunks = newTwins(), nil
		}
		if _, err := pack(j, store); err != nil {
			b.Fatal(err)
		}
	}
}
