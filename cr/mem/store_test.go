package mem

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/blob"
)

func tempFile(t testing.TB) *os.File {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(t.TempDir(), "f"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// noise is n random bytes, the same for the same seed.
func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	rnd := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	_, _ = rnd.Read(b) //nolint:errcheck // it never fails
	return b
}

// saveFile saves f and restores it into another file, whose name it returns.
func saveFile(t *testing.T, f *os.File, size int64) (*blob.Contents, string) {
	t.Helper()
	pages := tempFile(t)
	store := NewStore(pages, StoreOptions{})
	s := NewSaver(t.Context(), store, SaverOptions{})
	c := &blob.Contents{Id: 1, Size: uint64(size)}
	if err := errors.Join(s.File(f, c), s.Wait()); err != nil {
		t.Fatal(err)
	}
	back := tempFile(t)
	if err := RestoreContents(t.Context(), c, OpenPages(store.Index("pages"), pages), back); err != nil {
		t.Fatal(err)
	}
	return c, back.Name()
}

func TestFilesGoAndComeBack(t *testing.T) {
	const far = 64 << 20
	type part struct {
		at int64
		b  []byte
	}
	for name, c := range map[string]struct {
		size  int64
		parts []part
		pages int // that are stored; -1: whatever
	}{
		"empty":                         {0, nil, 0},
		"one byte":                      {1, []part{{0, []byte{1}}}, 1},
		"less than a page":              {100, []part{{0, noise(1, 100)}}, 1},
		"a page":                        {PageSize, []part{{0, noise(2, PageSize)}}, 1},
		"a page and a byte":             {PageSize + 1, []part{{0, noise(3, PageSize+1)}}, 2},
		"more than a chunk":             {3*ChunkSize + 17, []part{{0, noise(4, 3*ChunkSize+17)}}, 3*chunkPages + 1},
		"a hole only":                   {far, nil, 0},
		"a hole, then data":             {far + 5, []part{{far, noise(5, 5)}}, 1},
		"data, then a hole":             {far, []part{{0, noise(6, 10)}}, 1},
		"islands":                       {far, []part{{PageSize, noise(7, 1)}, {1 << 20, noise(8, 3*PageSize)}, {far - 1, noise(9, 1)}}, 5},
		"zeros are not stored":          {8 * PageSize, []part{{0, make([]byte, 8*PageSize)}}, 0},
		"zeros within":                  {3 * PageSize, []part{{0, noise(10, PageSize)}, {PageSize, make([]byte, PageSize)}, {2 * PageSize, noise(11, PageSize)}}, 2},
		"less was wanted than is there": {10, []part{{0, noise(12, 3*PageSize)}}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			f := tempFile(t)
			for _, p := range c.parts {
				if _, err := f.WriteAt(p.b, p.at); err != nil {
					t.Fatal(err)
				}
			}
			if st, err := f.Stat(); err != nil {
				t.Fatal(err)
			} else if st.Size() < c.size {
				if err := f.Truncate(c.size); err != nil {
					t.Fatal(err)
				}
			}
			rec, back := saveFile(t, f, c.size)
			pages := 0
			for _, e := range rec.Extents {
				pages += int(e.Pages)
			}
			if pages != c.pages {
				t.Errorf("%d pages stored, want %d", pages, c.pages)
			}
			sameFiles(t, f.Name(), back, c.size)
		})
	}
}

func sameFiles(t *testing.T, a, b string, size int64) {
	t.Helper()
	was, err := os.ReadFile(a)
	if err != nil {
		t.Fatal(err)
	}
	is, err := os.ReadFile(b)
	if err != nil {
		t.Fatal(err)
	}
	if int64(len(is)) != size || !bytes.Equal(is, was[:size]) {
		t.Errorf("came back as %d bytes, want %d, equal: %v", len(is), size, bytes.Equal(is, was[:min(len(was), len(is))]))
	}
	var st unix.Stat_t
	if err := unix.Stat(b, &st); err != nil {
		t.Fatal(err)
	}
	if st.Blocks*512 > size+ChunkSize {
		t.Errorf("a file of %d bytes takes %d", size, st.Blocks*512)
	}
}

// TestRestoreContentsIsBounded: extents beyond the end of the file write nothing.
func TestRestoreContentsIsBounded(t *testing.T) {
	pages := tempFile(t)
	store := NewStore(pages, StoreOptions{})
	if _, err := store.Put(noise(1, 2*PageSize)); err != nil {
		t.Fatal(err)
	}
	back := tempFile(t)
	c := &blob.Contents{Size: 10, Extents: []*blob.Extent{{Start: 0, Pages: 1}, {Start: 1 << 30, Pages: 1, Page: 1}}}
	if err := RestoreContents(t.Context(), c, OpenPages(store.Index("p"), pages), back); err != nil {
		t.Fatal(err)
	}
	if st, err := back.Stat(); err != nil || st.Size() != 10 {
		t.Errorf("%d bytes, %v", st.Size(), err)
	}
}

// spreadStore writes so much that the store has chunks in both of its files.
func spreadStore(t *testing.T, o StoreOptions) (*Store, []*os.File) {
	t.Helper()
	files := []*os.File{tempFile(t), tempFile(t)}
	o.More = files[1:]
	s := NewStore(files[0], o)
	s.ahead = 2 * window
	for i := range uint64(spreadFrom/ChunkSize + 2) {
		if _, err := s.Put(noise(i, ChunkSize)); err != nil {
			t.Fatal(err)
		}
	}
	return s, files
}

// TestSpread: a small store has one file, a large one several, which together hold
// each chunk once.
func TestSpread(t *testing.T) {
	s, files := spreadStore(t, StoreOptions{})
	index := s.Index("a", "b")
	if len(index.More) != 1 || index.More[0].File != "b" || index.Size != spreadFrom || index.More[0].Size != 2*ChunkSize {
		t.Fatalf("files: %d bytes, %v", index.Size, index.More)
	}
	if got := index.OwnSize(); got != uint64(s.Size()) {
		t.Errorf("%d bytes, want %d", got, s.Size())
	}
	if f := s.files[0]; f.sent == 0 || f.sent%window != 0 || f.sent > f.size || f.size-f.sent >= 2*window {
		t.Errorf("the disk was asked to take %d of %d bytes", f.sent, f.size)
	}
	p, buf := OpenPages(index, files[0], files[1]), make([]byte, ChunkSize)
	for i := range p.Len() {
		if b, err := p.Chunk(i, buf); err != nil || !bytes.Equal(b, noise(uint64(i), ChunkSize)) {
			t.Errorf("chunk %d: %v", i, err)
		}
	}
	if one := NewStore(tempFile(t), StoreOptions{More: []*os.File{tempFile(t)}}); len(one.Index("a", "b").More) > 0 {
		t.Error("an empty store has two files")
	}
}

// TestSpreadParent: what builds upon a store of several files, and is spread itself,
// names the right one for each chunk.
func TestSpreadParent(t *testing.T) {
	before, older := spreadStore(t, StoreOptions{})
	parent := NewParent(before.Index("a", "b"), "../before", make([]byte, 32))
	s, newer := spreadStore(t, StoreOptions{Parent: parent})
	index := s.Index("c", "d")
	if len(index.Parents) != 2 || index.Parents[0].File != "a" || index.Parents[1].File != "b" || index.Stores() != 4 {
		t.Fatalf("parents: %v", index.Parents)
	}
	p, buf := OpenPages(index, newer[0], older[0], older[1], newer[1]), make([]byte, ChunkSize)
	for i := range p.Len() {
		if b, err := p.Chunk(i, buf); err != nil || !bytes.Equal(b, noise(uint64(i%(p.Len()/2)), ChunkSize)) {
			t.Errorf("%s: %v", p.Name(i), err)
		}
	}
}

// TestSpreadWriters: workers that write at once have files of their own as soon as
// the store is large, and one that can't write leaves its place to others.
func TestSpreadWriters(t *testing.T) {
	s, files := spreadStore(t, StoreOptions{})
	var got []*os.File
	for range 3 {
		got = append(got, s.place(&blob.Chunk{Stored: 1}).f)
	}
	if got[0] != files[1] || got[1] != files[0] || got[2] != files[1] {
		t.Errorf("three at once: %v of %v", got, files)
	}
	for _, f := range s.files {
		f.writers = 0
	}
	if err := files[1].Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Put(noise(1, PageSize)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("put into a closed file: %v", err)
	}
	if s.files[1].writers != 0 {
		t.Errorf("%d writers are left", s.files[1].writers)
	}
}
