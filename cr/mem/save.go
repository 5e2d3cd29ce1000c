package mem

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/sys"
)

// workers is how many chunks are copied at once. Each holds one ChunkSize
// buffer; two saturate the page allocator of the machines measured.
const workers = 2

// Saver copies pages into a store. Use it from one goroutine; it copies with
// workers of its own, which end with Wait.
type Saver struct {
	store  *Store
	group  *errgroup.Group
	ctx    context.Context //nolint:containedctx // the workers' own, ended by Wait
	jobs   chan *job
	copied atomic.Int64

	regions []sys.PageRegion
	frames  []byte
	shared  map[uint64]frameOwner // page frames that several address spaces may map
	refs    []ref

	mu      sync.Mutex
	extents map[*[]*blob.Extent]struct{} // lists to sort at the end
}

// frameOwner is where a shared page frame was met first.
type frameOwner struct {
	list *[]*blob.Extent
	addr uint64
}

// ref is a run of pages whose contents another address space saves.
type ref struct {
	list  *[]*blob.Extent
	start uint64
	pages uint32
	from  frameOwner
}

// source reads bytes: a task's memory by address, or a file by offset.
type source interface {
	read(b []byte, spans []span) error
}

// job is one chunk's worth of pages.
type job struct {
	src      source
	spans    []span
	pages    int
	keepZero bool // zeros must be stored: a file lies beneath
	list     *[]*blob.Extent
}

// NewSaver starts a saver that writes to store.
func NewSaver(ctx context.Context, store *Store) *Saver {
	s := &Saver{
		store: store, jobs: make(chan *job, workers),
		regions: make([]sys.PageRegion, scanBatch), frames: make([]byte, chunkPages*8),
		shared: map[uint64]frameOwner{}, extents: map[*[]*blob.Extent]struct{}{},
	}
	s.group, s.ctx = errgroup.WithContext(ctx)
	for range workers {
		s.group.Go(s.work)
	}
	return s
}

// Copied is how many bytes have been read from the container so far.
func (s *Saver) Copied() int64 { return s.copied.Load() }

// AddressSpace saves the private pages of one stopped process. With sharing set
// it looks for page frames that an address space saved before holds too: worth
// it where processes were forked from each other. mm's extents are complete
// after Wait.
func (s *Saver) AddressSpace(pid int, mm *blob.MM, sharing bool) error {
	pagemap, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", pid))
	if err != nil {
		return err
	}
	defer pagemap.Close() //nolint:errcheck // read only
	src, gentle := &taskMemory{pid: pid}, &taskMemory{pid: pid, gentle: true}
	for _, v := range mm.Vmas {
		if v.Shared || (v.Kind != blob.VMA_ANON && v.Kind != blob.VMA_FILE) {
			continue
		}
		own := &batcher{saver: s, job: job{src: src, keepZero: v.Kind == blob.VMA_FILE, list: &mm.Extents}}
		common := &batcher{saver: s, job: own.job}
		common.job.src = gentle
		add := own.add
		if sharing {
			add = func(r span) error { return s.unshare(pagemap, r, own, common) }
		}
		err := scanVMA(pagemap, v, s.regions, func(r span, huge bool) error {
			if huge {
				mm.Huge = appendHuge(mm.Huge, r)
			}
			return add(r)
		})
		if err != nil {
			return err
		}
		if err := errors.Join(own.flush(), common.flush()); err != nil {
			return err
		}
	}
	return nil
}

// unshare hands the pages of r that no other address space maps to own, those
// that others map too to common, and notes a reference for the ones that have
// been saved with another.
func (s *Saver) unshare(pagemap *os.File, r span, own, common *batcher) error {
	for r.start < r.end {
		part := span{r.start, min(r.end, r.start+ChunkSize)}
		frames, err := pageFrames(pagemap, part, s.frames)
		if err != nil {
			return err
		}
		for i, e := range frames {
			addr := part.start + uint64(i)*PageSize
			pfn := e & pmPFN
			if e&pmPresent == 0 || e&pmExclusive != 0 || pfn == 0 {
				if err := own.add(span{addr, addr + PageSize}); err != nil {
					return err
				}
				continue
			}
			if owner, ok := s.shared[pfn]; ok {
				s.refer(common.job.list, addr, owner)
				continue
			}
			s.shared[pfn] = frameOwner{common.job.list, addr}
			if err := common.add(span{addr, addr + PageSize}); err != nil {
				return err
			}
		}
		r.start = part.end
	}
	return nil
}

// refer notes that the page at addr is the one that from saved, joining runs.
func (s *Saver) refer(list *[]*blob.Extent, addr uint64, from frameOwner) {
	if n := len(s.refs); n > 0 {
		l := &s.refs[n-1]
		size := uint64(l.pages) * PageSize
		if l.list == list && l.from.list == from.list && l.start+size == addr && l.from.addr+size == from.addr {
			l.pages++
			return
		}
	}
	s.refs = append(s.refs, ref{list, addr, 1, from})
}

// File saves the bytes of f, which stays the caller's and must stay open until
// Wait; its position is not used. c's extents are complete after Wait.
func (s *Saver) File(f *os.File, c *blob.Contents) error {
	b := &batcher{saver: s, job: job{src: fileBytes{f}, list: &c.Extents}}
	size := int64(c.Size)
	for at := int64(0); at < size; {
		data, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		switch {
		case errors.Is(err, unix.ENXIO): // a hole up to the end
			return b.flush()
		case err != nil:
			return fmt.Errorf("data of %s: %w", f.Name(), err)
		}
		hole, err := unix.Seek(int(f.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			return fmt.Errorf("holes of %s: %w", f.Name(), err)
		}
		end := min(hole, size)
		if end <= data {
			break
		}
		if err := b.add(span{uint64(data) &^ (PageSize - 1), (uint64(end) + PageSize - 1) &^ (PageSize - 1)}); err != nil {
			return err
		}
		at = (end + PageSize - 1) &^ (PageSize - 1)
	}
	return b.flush()
}

// Wait ends the workers and completes every list of extents.
func (s *Saver) Wait() error {
	close(s.jobs)
	if err := s.group.Wait(); err != nil {
		return err
	}
	for list := range s.extents {
		sortExtents(*list)
	}
	s.resolve()
	return nil
}

// batcher collects runs of pages into jobs of one chunk.
type batcher struct {
	saver *Saver
	job   job
}

func (b *batcher) add(r span) error {
	for r.start < r.end {
		room := uint64(chunkPages-b.job.pages) * PageSize
		part := span{r.start, min(r.end, r.start+room)}
		if n := len(b.job.spans); n > 0 && b.job.spans[n-1].end == part.start {
			b.job.spans[n-1].end = part.end
		} else {
			b.job.spans = append(b.job.spans, part)
		}
		b.job.pages += int((part.end - part.start) / PageSize)
		r.start = part.end
		if b.job.pages == chunkPages {
			if err := b.flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *batcher) flush() error {
	if b.job.pages == 0 {
		return nil
	}
	j := b.job
	b.job.spans, b.job.pages = nil, 0
	select {
	case b.saver.jobs <- &j:
		return nil
	case <-b.saver.ctx.Done():
		return context.Cause(b.saver.ctx)
	}
}

func (s *Saver) work() error {
	buf := make([]byte, ChunkSize)
	for j := range s.jobs {
		if s.ctx.Err() != nil {
			return context.Cause(s.ctx)
		}
		if err := s.copyChunk(j, buf); err != nil {
			return err
		}
	}
	return nil
}

func (s *Saver) copyChunk(j *job, buf []byte) error {
	raw := buf[:j.pages*PageSize]
	if err := j.src.read(raw, j.spans); err != nil {
		return err
	}
	s.copied.Add(int64(len(raw)))
	ext, kept := index(j, raw)
	if kept > 0 {
		chunk, err := s.store.Put(raw[:kept*PageSize])
		if err != nil {
			return err
		}
		for _, e := range ext {
			e.Chunk = chunk
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	*j.list = append(*j.list, ext...)
	s.extents[j.list] = struct{}{}
	return nil
}

var zeroPage [PageSize]byte

// index drops the pages of zeros from raw, closing the gaps, and returns the
// extents of what is left and how many pages that is.
func index(j *job, raw []byte) (ext []*blob.Extent, kept int) {
	at := 0
	for _, r := range j.spans {
		var last *blob.Extent
		for addr := r.start; addr < r.end; addr += PageSize {
			page := raw[at*PageSize : (at+1)*PageSize]
			at++
			if !j.keepZero && string(page) == string(zeroPage[:]) {
				last = nil
				continue
			}
			if kept != at-1 {
				copy(raw[kept*PageSize:], page)
			}
			if last == nil {
				last = &blob.Extent{Start: addr, Page: uint32(kept)}
				ext = append(ext, last)
			}
			last.Pages++
			kept++
		}
	}
	return ext, kept
}

func sortExtents(l []*blob.Extent) {
	slices.SortFunc(l, func(a, b *blob.Extent) int {
		switch {
		case a.Start < b.Start:
			return -1
		case a.Start > b.Start:
			return 1
		}
		return 0
	})
}

// resolve turns references into extents that name the owner's chunk. A page
// that the owner did not store was zero, and is in the sharer too.
func (s *Saver) resolve() {
	touched := map[*[]*blob.Extent][]*blob.Extent{}
	for _, r := range s.refs {
		owner := *r.from.list
		end := r.from.addr + uint64(r.pages)*PageSize
		i, _ := slices.BinarySearchFunc(owner, r.from.addr, func(e *blob.Extent, a uint64) int {
			if e.Start+uint64(e.Pages)*PageSize <= a {
				return -1
			}
			return 1
		})
		for ; i < len(owner) && owner[i].Start < end; i++ {
			e := owner[i]
			from := max(e.Start, r.from.addr)
			to := min(e.Start+uint64(e.Pages)*PageSize, end)
			touched[r.list] = append(touched[r.list], &blob.Extent{
				Start: r.start + (from - r.from.addr), Pages: uint32((to - from) / PageSize),
				Chunk: e.Chunk, Page: e.Page + uint32((from-e.Start)/PageSize),
			})
		}
	}
	for list, more := range touched {
		*list = append(*list, more...)
		sortExtents(*list)
	}
	s.refs = nil
}

// taskMemory reads the memory of a task from outside.
//
// process_vm_readv is the fast way, but it pins pages, and to pin one that is
// shared copy-on-write the kernel copies it first (mm/gup.c, gup_must_unshare,
// Linux 5.19): the container would grow, and its sharing be lost before it is
// seen. gentle reads by /proc/PID/mem only, which does not pin.
type taskMemory struct {
	pid    int
	gentle bool

	mem sync.Once
	f   *os.File
	err error
}

// maxIov is UIO_MAXIOV.
const maxIov = 1024

func (t *taskMemory) read(b []byte, spans []span) error {
	for len(spans) > 0 {
		n := min(len(spans), maxIov)
		remote := make([]unix.RemoteIovec, n)
		size := 0
		for i, r := range spans[:n] {
			remote[i] = unix.RemoteIovec{Base: uintptr(r.start), Len: int(r.end - r.start)}
			size += remote[i].Len
		}
		got, err := 0, error(nil)
		if !t.gentle {
			local := []unix.Iovec{{Base: &b[0], Len: uint64(size)}}
			got, err = unix.ProcessVMReadv(t.pid, local, remote, 0)
		}
		if err != nil || got != size {
			if err := t.readEach(b[:size], spans[:n]); err != nil {
				return err
			}
		}
		b, spans = b[size:], spans[n:]
	}
	return nil
}

// readEach reads through /proc/PID/mem, which unlike process_vm_readv also
// reads what the task itself may not (PROT_NONE).
func (t *taskMemory) readEach(b []byte, spans []span) error {
	t.mem.Do(func() { t.f, t.err = os.Open(fmt.Sprintf("/proc/%d/mem", t.pid)) })
	if t.err != nil {
		return t.err
	}
	for _, r := range spans {
		n := int(r.end - r.start)
		if _, err := t.f.ReadAt(b[:n], int64(r.start)); err != nil {
			return fmt.Errorf("memory %x-%x: %w", r.start, r.end, err)
		}
		b = b[n:]
	}
	return nil
}

// fileBytes reads a file; what lies beyond its end reads as zeros.
type fileBytes struct{ f *os.File }

func (s fileBytes) read(b []byte, spans []span) error {
	for _, r := range spans {
		n := int(r.end - r.start)
		got, err := s.f.ReadAt(b[:n], int64(r.start))
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("%s at %d: %w", s.f.Name(), r.start, err)
		}
		clear(b[got:n])
		b = b[n:]
	}
	return nil
}
