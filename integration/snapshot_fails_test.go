//go:build integration

package integration

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/integration/progs/box"
)

// peeker looks into the first process of a container where the program told that
// its newest number and its pages are.
type peeker struct {
	*box.Box
	mem        *os.File
	seq, first int64
	pages      int
}

func peek(t *testing.T, b *box.Box) *peeker {
	t.Helper()
	text, err := os.ReadFile(b.Path("ctl", "where"))
	if err != nil {
		t.Fatal(err)
	}
	p := &peeker{Box: b}
	if _, err := fmt.Sscan(string(text), &p.seq, &p.first, &p.pages); err != nil {
		t.Fatalf("where: %q: %v", text, err)
	}
	if p.mem, err = os.OpenFile(fmt.Sprintf("/proc/%d/mem", b.PID), os.O_RDWR, 0); err != nil {
		t.Fatalf("%s: %v: %s", b.ID, err, result(b))
	}
	t.Cleanup(func() { p.mem.Close() })
	return p
}

// read reads memory. A page of a lazy container that is still to come is EIO for
// whoever looks from outside.
func (p *peeker) read(t *testing.T, b []byte, at int64) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	return box.Poll(ctx, func() (bool, error) {
		n, err := p.mem.ReadAt(b, at)
		if errors.Is(err, unix.EIO) {
			return false, nil
		}
		return n == len(b), err
	})
}

// newest is the number of the program's newest write.
func (p *peeker) newest(t *testing.T) uint64 {
	t.Helper()
	b := make([]byte, 8)
	if err := p.read(t, b, p.seq); err != nil {
		t.Fatalf("%s: newest write: %v: %s", p.ID, err, result(p.Box))
	}
	return binary.NativeEndian.Uint64(b)
}

const pageSize = 4096

// all reads all pages.
func (p *peeker) all(t *testing.T) [][]byte {
	t.Helper()
	b := make([]byte, p.pages*pageSize)
	if err := p.read(t, b, p.first); err != nil {
		t.Fatalf("pages: %v", err)
	}
	return slices.Collect(slices.Chunk(b, pageSize))
}

func (p *peeker) put(t *testing.T, at int64, b []byte) {
	t.Helper()
	if _, err := p.mem.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}

// spoiled is a page as a snapshot that isn't one instant could have it: was is
// what it held before the checkpoint, is what it holds in the restored program,
// and later what the original holds now. The program must say what it says.
type spoiled struct {
	name, says string
	make       func(was, is, later []byte) []byte // nil: the newest number of the book is spoiled
}

func allSpoiled() []spoiled {
	return []spoiled{
		{"none", "", func(_, is, _ []byte) []byte { return is }},
		{"old", "is old", func(was, _, _ []byte) []byte { return was }},
		{"new", "is new", func(_, _, later []byte) []byte { return later }},
		{"torn", "is torn", func(_, is, later []byte) []byte { return slices.Concat(is[:2048], later[2048:]) }},
		{"lost", "is old", func(_, is, _ []byte) []byte { return make([]byte, len(is)) }},
		{"old book", "line of the log", nil},
		{"one bit", "is torn", func(_, is, _ []byte) []byte {
			out := slices.Clone(is)
			out[len(out)-1] ^= 1
			return out
		}},
	}
}

// TestSnapshotFails proves that the program of TestSnapshot sees what it is there
// to see: one page of a restored one is replaced by what a faulty snapshot would
// have had there.
func TestSnapshotFails(t *testing.T) {
	s := newSnapshots(t)
	w := writers{args: "pace=50000"}
	for _, d := range allSpoiled() {
		t.Run(d.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			b := s.start(ctx, t, w, 16)
			was := peek(t, b).all(t)
			rewritten(ctx, t, b)
			r := trip{image: filepath.Join(t.TempDir(), "image")}
			if err := b.Checkpoint(ctx, r.image, "--leave-running"); err != nil {
				t.Fatal(err)
			}
			rewritten(ctx, t, b)
			twin := s.beside(ctx, t, b, w, r.image+"-twin", r)
			hurt(ctx, t, twin, d, was, peek(t, b).all(t))
			err := twin.Go(ctx)
			if d.says == "" && err != nil {
				t.Errorf("without damage: %v", err)
			}
			if d.says != "" && (err == nil || !strings.Contains(err.Error(), d.says)) {
				t.Errorf("error %v, want one that says %q", err, d.says)
			}
		})
	}
}

// rewritten waits until most pages have been written anew.
func rewritten(ctx context.Context, t *testing.T, b *box.Box) {
	t.Helper()
	p := peek(t, b)
	was := p.newest(t)
	if err := box.Poll(ctx, func() (bool, error) { return p.newest(t) > was+2*uint64(p.pages), nil }); err != nil {
		t.Fatal(err)
	}
}

// hurt spoils one page, or the book, while the program stands still.
func hurt(ctx context.Context, t *testing.T, b *box.Box, d spoiled, was, later [][]byte) {
	t.Helper()
	if err := unix.Kill(b.PID, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	stopped := fmt.Sprintf("/proc/%d/status", b.PID)
	err := box.Poll(ctx, func() (bool, error) {
		text, err := os.ReadFile(stopped)
		return bytes.Contains(text, []byte("T (stopped)")), err
	})
	if err != nil {
		t.Fatal(err)
	}
	p := peek(t, b)
	if newest := p.newest(t); d.make == nil {
		p.put(t, p.seq, binary.NativeEndian.AppendUint64(nil, newest-1))
	} else {
		page, contents := spoil(t, d, newest, was, p.all(t), later)
		p.put(t, p.first+int64(page)*pageSize, contents)
	}
	if err := unix.Kill(b.PID, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
}

// spoil finds a page that was written before the checkpoint and after it, and
// returns what is to be put there.
func spoil(t *testing.T, d spoiled, newest uint64, was, is, later [][]byte) (page int, contents []byte) {
	t.Helper()
	tag := func(b []byte) uint64 { return binary.NativeEndian.Uint64(b) }
	for i := range is {
		// The newest page may be half written.
		if tag(was[i]) < tag(is[i]) && tag(is[i]) < min(newest-1, tag(later[i])) {
			return i, d.make(was[i], is[i], later[i])
		}
	}
	t.Fatal("no page that was written before and after")
	return 0, nil
}
