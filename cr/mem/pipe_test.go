package mem

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stasis-cr/stasis/cr/blob"
)

// flow counts what a pipe does with its jobs.
type flow struct {
	pipe
	reads, plain, packed atomic.Int64
}

func newFlow(t *testing.T, hurry bool) *flow {
	t.Helper()
	f := &flow{}
	f.pipe = pipe{pool: &pool{}, hurry: hurry, read: func(*job) error { f.reads.Add(1); return nil }, write: func(j *job) error {
		if j.plain {
			f.plain.Add(1)
		} else {
			f.packed.Add(1)
		}
		return nil
	}}
	return f
}

func (f *flow) addAll(t *testing.T, n int) {
	t.Helper()
	for range n {
		if err := f.add(&job{pages: chunkPages}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestHurry: until all is read, nothing is compressed, and nothing written that
// memory has room for.
func TestHurry(t *testing.T) {
	for _, n := range []int{1, poolSize, 3 * poolSize} {
		f := newFlow(t, true)
		var early atomic.Int64 // written while there was a hurry
		compress := make(chan struct{})
		count := f.write
		f.write = func(j *job) error {
			if !j.plain {
				<-compress
			} else {
				early.Add(1)
			}
			return count(j)
		}
		f.start(t.Context())
		f.addAll(t, n)
		if err := f.settle(); err != nil || f.reads.Load() != int64(n) {
			t.Fatalf("%d of %d read, %v", f.reads.Load(), n, err)
		}
		if most := int64(max(0, n-poolSize)); early.Load() > most+int64(workers()) || early.Load() < most {
			t.Errorf("%d of %d chunks were written in a hurry, and %d had no room", early.Load(), n, most)
		}
		if f.packed.Load() != 0 {
			t.Errorf("%d chunks were compressed in a hurry", f.packed.Load())
		}
		close(compress)
		if err := f.end(); err != nil || f.plain.Load()+f.packed.Load() != int64(n) {
			t.Errorf("%d+%d of %d written, %v", f.plain.Load(), f.packed.Load(), n, err)
		}
		if len(f.pool.free) != f.pool.made || f.pool.made > poolSize {
			t.Errorf("%d of %d buffers came back", len(f.pool.free), f.pool.made)
		}
	}
}

// TestNoHurry: each worker writes what it has read, and needs one buffer.
func TestNoHurry(t *testing.T) {
	const n = 5 * poolSize
	f := newFlow(t, false)
	f.start(t.Context())
	for range 2 { // to settle is not the end
		f.addAll(t, n)
		if err := f.settle(); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.end(); err != nil || f.reads.Load() != 2*n || f.packed.Load() != 2*n {
		t.Errorf("%d read, %d compressed, %d not, %v", f.reads.Load(), f.packed.Load(), f.plain.Load(), err)
	}
	if f.pool.made > workers() {
		t.Errorf("%d buffers for %d workers", f.pool.made, workers())
	}
}

// TestPool lends and takes back at random: what is lent is nobody else's, there are
// not more buffers than there may be, and small loans share them.
func TestPool(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	p := &pool{}
	lent := map[byte]loan{}
	for i := range 5000 {
		mark := byte(i)
		if l, ok := lent[mark]; ok {
			for _, b := range l.b {
				if b != mark {
					t.Fatalf("loan %d holds %d", mark, b)
				}
			}
			p.give(l)
			delete(lent, mark)
		}
		if r.IntN(4) == 0 {
			continue
		}
		pages := 1 + r.IntN(smallJob)
		if r.IntN(8) == 0 {
			pages = chunkPages - r.IntN(chunkPages/2)
		}
		l, ok := p.take(pages)
		if !ok {
			continue
		}
		l.b = l.b[:pages*PageSize]
		for i := range l.b {
			l.b[i] = mark
		}
		lent[mark] = l
		if p.made > poolSize {
			t.Fatalf("%d buffers", p.made)
		}
	}
	for _, l := range lent {
		p.give(l)
	}
	for range poolSize {
		if _, ok := p.take(chunkPages); !ok {
			t.Fatalf("some of %d buffers did not come back", p.made)
		}
	}
	few := &pool{}
	for range poolSize {
		few.take(1)
	}
	if few.made != 1 {
		t.Errorf("%d buffers for %d pages", few.made, poolSize)
	}
}

// TestPipeFails: an error on either side, or of the context, comes out
// everywhere, nobody waits for ever, and all buffers come back.
func TestPipeFails(t *testing.T) {
	broken := errors.New("broken")
	for name, spoil := range map[string]func(*flow, context.CancelCauseFunc){
		"read":  func(f *flow, _ context.CancelCauseFunc) { f.read = func(*job) error { return broken } },
		"write": func(f *flow, _ context.CancelCauseFunc) { f.write = func(*job) error { return broken } },
		"later": func(f *flow, _ context.CancelCauseFunc) {
			f.read = func(*job) error {
				if f.reads.Add(1) > poolSize+3 {
					return broken
				}
				return nil
			}
		},
		"context": func(_ *flow, cancel context.CancelCauseFunc) { cancel(broken) },
	} {
		for _, hurry := range []bool{true, false} {
			ctx, cancel := context.WithCancelCause(t.Context())
			f := newFlow(t, hurry)
			spoil(f, cancel)
			f.start(ctx)
			var err error
			for err == nil { // it must come to that
				err = f.add(&job{pages: chunkPages})
			}
			if !errors.Is(err, broken) {
				t.Errorf("%s, hurry %v: add: %v", name, hurry, err)
			}
			if err := f.settle(); !errors.Is(err, broken) {
				t.Errorf("%s, hurry %v: settle: %v", name, hurry, err)
			}
			if err := f.end(); !errors.Is(err, broken) {
				t.Errorf("%s, hurry %v: end: %v", name, hurry, err)
			}
			if len(f.pool.free) != f.pool.made {
				t.Errorf("%s, hurry %v: %d of %d buffers came back", name, hurry, len(f.pool.free), f.pool.made)
			}
			cancel(nil)
		}
	}
}

// TestReadIsEnough: after Read the source may go, and change. Savers that follow
// each other fill one store and share its memory.
func TestReadIsEnough(t *testing.T) {
	const size = (poolSize + 9) * ChunkSize
	pages := tempFile(t)
	store := NewStore(pages, StoreOptions{Codec: blob.Chunk_S2})
	var recs []*blob.Contents
	var want [][]byte
	for i, hurry := range []bool{true, false, true} {
		f := tempFile(t)
		text := prose(uint64(i), size)
		if _, err := f.WriteAt(text, 0); err != nil {
			t.Fatal(err)
		}
		s := NewSaver(t.Context(), store, SaverOptions{Hurry: hurry})
		c := &blob.Contents{Size: size}
		if err := errors.Join(s.File(f, c), s.Read()); err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(make([]byte, size), 0); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(f.Close(), s.Wait(), s.Close()); err != nil {
			t.Fatal(err)
		}
		recs, want = append(recs, c), append(want, text)
	}
	if store.pool.made > poolSize {
		t.Errorf("%d buffers", store.pool.made)
	}
	count := map[blob.Chunk_Codec]int{}
	for _, c := range store.Index("p").Chunks {
		count[c.Codec]++
	}
	if count[blob.Chunk_RAW] == 0 || count[blob.Chunk_RAW] > 2*(9+workers()) || count[blob.Chunk_S2] < 3*poolSize {
		t.Errorf("chunks by codec: %v", count)
	}
	for i, c := range recs {
		back := tempFile(t)
		if err := RestoreContents(t.Context(), c, OpenPages(store.Index("p"), pages), back); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(back.Name()); err != nil || string(got) != string(want[i]) {
			t.Errorf("saver %d: other bytes (%v)", i, err)
		}
	}
}

// TestCloseGivesUp: whatever a saver is at, Close ends it.
func TestCloseGivesUp(t *testing.T) {
	f := tempFile(t)
	if _, err := f.WriteAt(noise(1, 8*ChunkSize), 0); err != nil {
		t.Fatal(err)
	}
	for _, hurry := range []bool{true, false} {
		s := NewSaver(t.Context(), NewStore(tempFile(t), StoreOptions{}), SaverOptions{Hurry: hurry})
		if err := s.File(f, &blob.Contents{Size: 8 * ChunkSize}); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(s.Close(), s.Close()); err != nil {
			t.Error(err)
		}
		if err := s.Read(); !errors.Is(err, errClosed) {
			t.Errorf("read after close: %v", err)
		}
		if err := s.Wait(); !errors.Is(err, errClosed) {
			t.Errorf("wait after close: %v", err)
		}
	}
}

func TestShare(t *testing.T) {
	const ms = time.Millisecond
	for _, tc := range []struct {
		name  string
		work  [][2]time.Duration // wall, CPU
		tired bool
	}{
		{"alone", [][2]time.Duration{{900 * ms, 880 * ms}, {900 * ms, 890 * ms}}, false},
		{"shares", [][2]time.Duration{{900 * ms, 300 * ms}, {900 * ms, 200 * ms}}, false},
		{"not yet", [][2]time.Duration{{500 * ms, 1 * ms}, {500 * ms, 1 * ms}}, false},
		{"starves", [][2]time.Duration{{500 * ms, 5 * ms}, {501 * ms, 5 * ms}}, true},
		{"starves at last", [][2]time.Duration{{2000 * ms, 1900 * ms}, {1100 * ms, 10 * ms}}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var s share
			tired := false
			for _, w := range tc.work {
				tired = s.add(w[0], w[1])
			}
			if tired != tc.tired {
				t.Errorf("%+v: %v, want %v", s, tired, tc.tired)
			}
		})
	}
}
