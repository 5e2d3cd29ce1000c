package lazy

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestWorkingSet(t *testing.T) {
	path := t.TempDir()
	dir, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	log := slog.New(slog.DiscardHandler)
	first := &workingSet{image: 5}
	first.load(dir, log)
	first.note(1, 4*page, 8*page)
	first.note(0, 4*page, 8*page) // of a child that another run does not know
	first.note(1, 4*page, 8*page)
	first.note(7, 16*page, 17*page)
	first.save(dir, log)

	second := &workingSet{image: 5}
	second.load(dir, log)
	want := []window{{1, 4 * page, 8 * page}, {7, 16 * page, 17 * page}}
	if !slices.Equal(second.old, want) {
		t.Errorf("%v, want %v", second.old, want)
	}
	second.note(7, 0, page)
	second.save(dir, log)
	third := &workingSet{image: 5}
	third.load(dir, log)
	if want = append(want, window{7, 0, page}); !slices.Equal(third.old, want) {
		t.Errorf("%v, want %v", third.old, want)
	}
	other := &workingSet{image: 6}
	if other.load(dir, log); other.old != nil {
		t.Errorf("another image's: %v", other.old)
	}
	if names, err := filepath.Glob(filepath.Join(path, ".*")); err != nil || len(names) > 0 {
		t.Errorf("left: %v, %v", names, err)
	}
}

// FuzzWorkingSet: what is decoded is in order, and encodes to the same.
func FuzzWorkingSet(f *testing.F) {
	f.Add(encodeSet([]window{{1, 4 * page, 8 * page}}, 5))
	f.Add([]byte(setMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := decodeSet(b, 5)
		if err != nil {
			return
		}
		if got := encodeSet(list, 5); !slices.Equal(got, b) {
			t.Errorf("%x encodes to %x", b, got)
		}
		for _, w := range list {
			if w.start >= w.end || w.end-w.start > 1<<20 || w.pid <= 0 {
				t.Errorf("window %+v", w)
			}
		}
	})
}

func TestCache(t *testing.T) {
	reads := map[int]int{}
	bad := errors.New("bad")
	c := newCache(func(i int, buf []byte) ([]byte, error) {
		reads[i]++
		if i == 99 {
			return nil, bad
		}
		buf[0] = byte(i)
		return buf[:1], nil
	})
	held, err := c.get(1)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 * cacheChunks {
		s, err := c.get(uint32(i))
		if err != nil || s.b[0] != byte(i) {
			t.Fatalf("chunk %d: %v", i, err)
		}
		c.put(s)
	}
	if held.b[0] != 1 || reads[1] != 1 || !c.has(1) {
		t.Errorf("a chunk that is used: %d, read %d times, there %v", held.b[0], reads[1], c.has(1))
	}
	if c.has(2) || len(c.slots) > cacheChunks {
		t.Errorf("%d chunks are kept", len(c.slots))
	}
	if _, err := c.get(99); !errors.Is(err, bad) {
		t.Errorf("a bad chunk: %v", err)
	}
}
