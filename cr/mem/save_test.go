package mem

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/cr/sys"
)

// needs ends a test that asks for more than this kernel or user can give.
func needs(t *testing.T, what string, ok bool) {
	t.Helper()
	switch {
	case ok:
	case os.Getenv("CI") == "true":
		t.Fatalf("%s is missing", what)
	default:
		t.Skipf("%s is missing", what)
	}
}

func needsPagemapScan(t *testing.T) {
	t.Helper()
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	scan := sys.PageScan{Start: 0x10000, End: 0x11000, AnyOf: sys.PagePresent, Return: sys.PagePresent}
	_, err = scan.Scan(f, make([]sys.PageRegion, 1))
	needs(t, "PAGEMAP_SCAN", err == nil)
}

// saved is a page store under test.
type saved struct {
	file  *os.File
	index *blob.PageStore
}

// page returns the bytes of a stored page.
func (s *saved) page(t *testing.T, e *blob.Extent, i uint32) []byte {
	t.Helper()
	buf := make([]byte, ChunkSize)
	raw, err := OpenPages(s.index, s.file).Chunk(int(e.Chunk), buf)
	if err != nil {
		t.Fatal(err)
	}
	at := (e.Page + i) * PageSize
	return raw[at : at+PageSize]
}

// pages are all saved pages of an address space, by address.
func (s *saved) pages(t *testing.T, extents []*blob.Extent) map[uint64][]byte {
	t.Helper()
	out := map[uint64][]byte{}
	last := uint64(0)
	for _, e := range extents {
		if e.Start < last {
			t.Fatalf("extent at %x is out of order or overlaps", e.Start)
		}
		for i := range e.Pages {
			out[e.Start+uint64(i)*PageSize] = s.page(t, e, i)
		}
		last = e.Start + uint64(e.Pages)*PageSize
	}
	return out
}

// saveSpaces saves address spaces of processes into one store.
func saveSpaces(t *testing.T, sharing bool, pids []int, mms []*blob.MM) *saved {
	t.Helper()
	f := tempFile(t)
	store := NewStore(f, StoreOptions{})
	s := NewSaver(t.Context(), store, SaverOptions{})
	var err error
	for i, pid := range pids {
		err = errors.Join(err, s.AddressSpace(pid, mms[i], sharing, nil))
	}
	if err := errors.Join(err, s.Wait()); err != nil {
		t.Fatal(err)
	}
	if s.Copied() < store.Size() {
		t.Errorf("%d bytes copied, %d stored", s.Copied(), store.Size())
	}
	return &saved{f, store.Index("pages")}
}

func TestAddressSpace(t *testing.T) {
	needsPagemapScan(t)
	h := startHelper(t)
	names := []string{"random", "mixed", "none", "readonly", "untouched", "zero", "file"}
	mm := h.mm(names...)
	s := saveSpaces(t, false, []int{h.PID}, []*blob.MM{mm})
	for i, c := range s.index.Chunks {
		if c.Raw == 0 || c.Raw > ChunkSize || c.Raw%PageSize != 0 {
			t.Errorf("chunk %d has %d bytes", i, c.Raw)
		}
	}
	want := map[string]int{
		"random": randomPages, "mixed": mixedPages / 3, "none": smallPages, "readonly": smallPages, "file": len(copied()),
	}
	pages := s.pages(t, mm.Extents)
	total := 0
	for _, name := range names {
		p := h.Places[name]
		is := peek(t, h.PID, p)
		n := 0
		for at := p.Start; at < p.End; at += PageSize {
			real := is[at-p.Start : at-p.Start+PageSize]
			b, ok := pages[at]
			switch {
			case ok && !bytes.Equal(b, real):
				t.Errorf("%s: page %d differs", name, (at-p.Start)/PageSize)
			case !ok && !p.File && !bytes.Equal(real, zeroPage[:]):
				t.Errorf("%s: page %d is missing", name, (at-p.Start)/PageSize)
			case ok && p.File && !slices.Contains(copied(), int(at-p.Start)/PageSize):
				t.Errorf("%s: page %d is the file's own", name, (at-p.Start)/PageSize)
			}
			if ok {
				n++
			}
		}
		if n != want[name] {
			t.Errorf("%s: %d pages saved, want %d", name, n, want[name])
		}
		total += n
	}
	if total != len(pages) {
		t.Errorf("%d pages saved outside of the mappings", len(pages)-total)
	}
}

// TestSharedPagesAreStoredOnce: a forked child adds only what it has written.
func TestSharedPagesAreStoredOnce(t *testing.T) {
	needsPagemapScan(t)
	needs(t, "root, who sees page frame numbers,", os.Geteuid() == 0)
	h := startHelper(t)
	names := []string{"random", "mixed", "none", "readonly", "file"}
	parent, child := h.mm(names...), h.mm(names...)
	await(t, func() bool { // the child's two writes
		a, b := peek(t, h.PID, h.Places["random"]), peek(t, h.Child, h.Places["random"])
		return a[0] != b[0] && a[(chunkPages+1)*PageSize] != b[(chunkPages+1)*PageSize]
	})
	frames := framesOf(t, h.PID, h.Places["mixed"])
	alone := saveSpaces(t, true, []int{h.PID}, []*blob.MM{h.mm(names...)})
	both := saveSpaces(t, true, []int{h.PID, h.Child}, []*blob.MM{parent, child})
	if more := int(both.index.Size-alone.index.Size) / PageSize; more != 2 {
		t.Errorf("the child costs %d pages, want 2", more)
	}
	if !slices.Equal(frames, framesOf(t, h.PID, h.Places["mixed"])) {
		t.Error("to save the pages has moved them: the container has grown")
	}
	for _, who := range []struct {
		pid int
		mm  *blob.MM
	}{{h.PID, parent}, {h.Child, child}} {
		pages := both.pages(t, who.mm.Extents)
		for _, name := range names {
			p := h.Places[name]
			is := peek(t, who.pid, p)
			for at := p.Start; at < p.End; at += PageSize {
				real := is[at-p.Start : at-p.Start+PageSize]
				b, ok := pages[at]
				if (ok && !bytes.Equal(b, real)) || (!ok && !p.File && !bytes.Equal(real, zeroPage[:])) {
					t.Fatalf("pid %d, %s: page %d is wrong (saved: %v)", who.pid, name, (at-p.Start)/PageSize, ok)
				}
			}
		}
	}
}

// framesOf are the page frames behind a mapping.
func framesOf(t *testing.T, pid int, p place) []uint64 {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	frames, err := pageFrames(f, span{start: p.Start, end: p.End}, make([]byte, (p.End-p.Start)/PageSize*8))
	if err != nil {
		t.Fatal(err)
	}
	return frames
}

// await polls until f holds.
func await(t *testing.T, f func() bool) {
	t.Helper()
	for !f() {
		if t.Context().Err() != nil {
			t.Fatal("it did not happen")
		}
		sys.SchedYield()
	}
}

// moved returns the extents within p, as if p began at to.
func moved(extents []*blob.Extent, p place, to uint64) []*blob.Extent {
	var out []*blob.Extent
	for _, e := range extents {
		if e.Start >= p.Start && e.Start < p.End {
			out = append(out, &blob.Extent{Start: e.Start - p.Start + to, Pages: e.Pages, Chunk: e.Chunk, Page: e.Page})
		}
	}
	return out
}

// TestFill puts the memory of one process into another, two places at once, one
// of which that process itself may not write.
func TestFill(t *testing.T) {
	needsPagemapScan(t)
	from, to := startHelper(t), startHelper(t)
	mm := from.mm("random", "readonly")
	s := saveSpaces(t, false, []int{from.PID}, []*blob.MM{mm})
	target, err := NewTaskTarget(to.PID)
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	plan := NewPlan(s.index)
	plan.Want(moved(mm.Extents, from.Places["random"], to.Places["target"].Start), target)
	plan.Want(moved(mm.Extents, from.Places["readonly"], to.Places["closed"].Start), target)
	if err := plan.Fill(t.Context(), OpenPages(s.index, s.file)); err != nil {
		t.Fatal(err)
	}
	if done, total := plan.Progress(); done != total || total != (randomPages+smallPages)*PageSize {
		t.Errorf("progress %d of %d", done, total)
	}
	for a, b := range map[string]string{"random": "target", "readonly": "closed"} {
		if !bytes.Equal(peek(t, from.PID, from.Places[a]), peek(t, to.PID, to.Places[b])) {
			t.Errorf("%s did not come back", a)
		}
	}
}

func TestFillFails(t *testing.T) {
	f := tempFile(t)
	store := NewStore(f, StoreOptions{})
	for i := range 8 {
		if _, err := store.Put(noise(uint64(i), PageSize)); err != nil {
			t.Fatal(err)
		}
	}
	want := func(index *blob.PageStore) *Plan {
		p := NewPlan(index)
		for i := range 8 {
			p.Want([]*blob.Extent{{Start: uint64(i) * PageSize, Pages: 1, Chunk: uint32(i)}}, &fileTarget{tempFile(t), 8 * PageSize})
		}
		return p
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := want(store.Index("p")).Fill(ctx, OpenPages(store.Index("p"), f)); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := f.WriteAt([]byte{1, 2, 3}, 5*PageSize); err != nil {
		t.Fatal(err)
	}
	if err := want(store.Index("p")).Fill(t.Context(), OpenPages(store.Index("p"), f)); !errors.Is(err, errs.ErrCorrupt) {
		t.Errorf("damaged: %v", err)
	}
	if err := NewPlan(nil).Fill(t.Context(), OpenPages(nil, f)); err != nil {
		t.Errorf("nothing wanted: %v", err)
	}
}

// TestSaverFails: an error of a worker comes out, and nobody waits for ever.
func TestSaverFails(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	f := tempFile(t)
	if _, err := f.Write(noise(1, 8*ChunkSize)); err != nil {
		t.Fatal(err)
	}
	s := NewSaver(t.Context(), NewStore(full, StoreOptions{}), SaverOptions{})
	err = s.File(f, &blob.Contents{Size: 8 * ChunkSize})
	if e := s.Wait(); !errors.Is(e, unix.ENOSPC) {
		t.Errorf("no room: %v, %v", err, e)
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s = NewSaver(ctx, NewStore(tempFile(t), StoreOptions{}), SaverOptions{})
	err = s.File(f, &blob.Contents{Size: 8 * ChunkSize})
	if e := s.Wait(); !errors.Is(errors.Join(err, e), context.Canceled) {
		t.Errorf("cancelled: %v, %v", err, e)
	}

	s = NewSaver(t.Context(), NewStore(tempFile(t), StoreOptions{}), SaverOptions{})
	if err := s.AddressSpace(1<<30, &blob.MM{}, false, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("nobody's memory: %v", err)
	}
	if err := s.Wait(); err != nil {
		t.Error(err)
	}
}

// FuzzPack: what is dropped are zeros and pages that are stored, what is kept is
// in its place, and everything is where its extent says.
func FuzzPack(f *testing.F) {
	f.Add([]byte{1, 0, 1, 2, 0, 0x81, 0x82}, true, false)
	f.Add([]byte{1, 0, 1, 2, 0, 0x81, 0x82}, false, true)
	f.Fuzz(func(t *testing.T, marks []byte, keepZero, alone bool) {
		marks = marks[:min(len(marks), 64)]
		j := &job{buf: loan{b: make([]byte, len(marks)*PageSize)}, pages: len(marks), alone: alone}
		want, kinds := map[uint64]byte{}, map[byte]bool{}
		at := uint64(0)
		for i, m := range marks {
			if m&0x80 != 0 {
				at += PageSize // a gap
			}
			if n := len(j.spans); n > 0 && j.spans[n-1].end == at {
				j.spans[n-1].end += PageSize
			} else {
				j.spans = append(j.spans, span{at, at + PageSize, keepZero})
			}
			j.buf.b[i*PageSize] = m & 0x7f
			if m&0x7f != 0 || keepZero {
				want[at], kinds[m&0x7f] = m&0x7f, true
			}
			at += PageSize
		}
		stored := len(kinds)
		if alone {
			stored = len(want)
		}
		p, err := pack(j, NewStore(nil, StoreOptions{}))
		if err != nil || p.kept != stored || len(p.store.chunks) != min(1, stored) {
			t.Fatalf("kept %d pages, want %d, in %d chunks: %v", p.kept, stored, len(p.store.chunks), err)
		}
		for _, e := range p.extents {
			for i := range uint64(e.Pages) {
				m, ok := want[e.Start+i*PageSize]
				if !ok || int(e.Page)+int(i) >= stored || p.raw[(uint64(e.Page)+i)*PageSize] != m {
					t.Fatalf("page at %x is wrong", e.Start+i*PageSize)
				}
				delete(want, e.Start+i*PageSize)
			}
		}
		if len(want) != 0 {
			t.Errorf("%d pages have no extent", len(want))
		}
	})
}
