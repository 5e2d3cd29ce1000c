package mem

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/sys"
)

// SaverOptions say how a saver works.
type SaverOptions struct {
	// Hurry: somebody waits for Read. Until it returns, pages are copied into
	// memory, and what does not fit there is stored as it is, uncompressed.
	Hurry bool
	// Background: the container runs. The workers take the time that nobody else
	// wants.
	Background bool
}

// Saver copies pages into a store. Use it from one goroutine; it works with
// goroutines of its own, which end with Wait or Close. Several savers may fill
// one store, one after the other.
type Saver struct {
	store  *Store
	pipe   pipe
	copied atomic.Int64

	regions []sys.PageRegion
	frames  []byte
	shared  map[uint64]frameOwner // page frames that several address spaces may map
	refs    []ref
	before  []earlier
	tasks   []*taskMemory

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

// earlier are pages that a [Tracker] had saved before, wherever they are in base.
type earlier struct {
	list  *[]*blob.Extent
	base  []*blob.Extent
	clean []span
}

// job is one chunk's worth of pages.
type job struct {
	src      source
	spans    []span
	pages    int
	alone    bool // each page is stored for itself
	noteZero bool // zeros get an extent, of zeroChunk
	list     *[]*blob.Extent

	buf    loan // holds the pages once filled
	filled bool // read, and on its way to be written
	plain  bool // to be written uncompressed
}

// NewSaver starts a saver that writes to store. The caller ends it with Wait or
// Close.
func NewSaver(ctx context.Context, store *Store, o SaverOptions) *Saver {
	s := &Saver{
		store:   store,
		regions: make([]sys.PageRegion, scanBatch), frames: make([]byte, chunkPages*8),
		shared: map[uint64]frameOwner{}, extents: map[*[]*blob.Extent]struct{}{},
	}
	s.pipe = pipe{pool: &store.pool, read: s.fill, write: s.keep, hurry: o.Hurry, background: o.Background}
	s.pipe.start(ctx)
	return s
}

// Copied is how many bytes have been read from the container so far.
func (s *Saver) Copied() int64 { return s.copied.Load() }

// AddressSpace saves the private pages of one stopped process. With sharing set
// it looks for page frames that an address space saved before holds too: worth
// it where processes were forked from each other. mm's extents are complete
// after Wait.
//
// t, which may be nil, has followed the process while it ran: what it has saved
// already and was not written since is not copied again.
func (s *Saver) AddressSpace(pid int, mm *blob.MM, sharing bool, t *Tracker) error {
	pagemap, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", pid))
	if err != nil {
		return err
	}
	defer pagemap.Close() //nolint:errcheck // read only
	if t != nil {
		t.last = nil
	}
	src, gentle := &taskMemory{pid: pid}, &taskMemory{pid: pid, gentle: true}
	s.tasks = append(s.tasks, src, gentle)
	own := &batcher{saver: s, job: job{src: src, list: &mm.Extents}}
	common := &batcher{saver: s, job: job{src: gentle, list: &mm.Extents}}
	for _, v := range mm.Vmas {
		if v.Shared || (v.Kind != blob.VMA_ANON && v.Kind != blob.VMA_FILE) {
			continue
		}
		own.keepZero = v.Kind == blob.VMA_FILE // zeros must be stored: a file lies beneath
		common.keepZero = own.keepZero
		add := own.add
		if sharing {
			add = func(r span) error { return s.unshare(pagemap, r, own, common) }
		}
		if t != nil && v.Kind == blob.VMA_ANON {
			err = s.rest(t, pagemap, v, mm, add)
		} else {
			err = scanVMA(pagemap, v, s.regions, func(r span, huge bool) error {
				if huge {
					mm.Huge = appendHuge(mm.Huge, r)
				}
				return add(r)
			})
		}
		if err != nil {
			return err
		}
	}
	return errors.Join(own.flush(), common.flush())
}

// unshare hands the pages of r that no other address space maps to own, those
// that others map too to common, and notes a reference for the ones that have
// been saved with another.
func (s *Saver) unshare(pagemap *os.File, r span, own, common *batcher) error {
	return eachFrame(pagemap, r, s.frames, func(addr, entry uint64) error {
		page := span{start: addr, end: addr + PageSize}
		pfn := entry & pmPFN
		if entry&pmPresent == 0 || entry&pmExclusive != 0 || pfn == 0 {
			return own.add(page)
		}
		if owner, ok := s.shared[pfn]; ok {
			s.refer(common.job.list, addr, owner)
			return nil
		}
		s.shared[pfn] = frameOwner{common.job.list, addr}
		return common.add(page)
	})
}

// rest saves what t has not saved of v as it is now.
func (s *Saver) rest(t *Tracker, pagemap *os.File, v *blob.VMA, mm *blob.MM, add func(span) error) error {
	is, err := t.split(pagemap, v, s.regions)
	if err != nil {
		return err
	}
	if t.goOn {
		t.last = append(t.last, is.rest...)
	}
	mm.Huge = append(mm.Huge, is.huge...)
	s.before = append(s.before, earlier{&mm.Extents, t.base, is.clean})
	for _, r := range is.rest {
		if err := add(r); err != nil {
			return err
		}
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
// Read or Close; its position is not used. c's extents are complete after Wait.
func (s *Saver) File(f *os.File, c *blob.Contents) error {
	// A reader counts the pages of contents: it fills them outside of the
	// container's memory limit, so there must be as many as are stored.
	b := &batcher{saver: s, job: job{src: fileBytes{f}, alone: true, list: &c.Extents}}
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
		at = (end + PageSize - 1) &^ (PageSize - 1)
		if err := b.add(span{start: uint64(data) &^ (PageSize - 1), end: uint64(at)}); err != nil {
			return err
		}
	}
	return b.flush()
}

// Read waits until every page that was handed over so far is copied: what is
// saved may go on, and files may be closed, while the pages are written. Also
// after an error nothing is read any more.
func (s *Saver) Read() error { return s.pipe.settle() }

// Wait waits until all is written, ends the workers, and completes every list of
// extents.
func (s *Saver) Wait() error {
	if err := errors.Join(s.pipe.end(), s.closeTasks()); err != nil {
		return err
	}
	for _, e := range s.before {
		*e.list = append(*e.list, savedIn(e.base, e.clean)...)
		s.extents[e.list] = struct{}{}
	}
	s.before = nil
	for list := range s.extents {
		sortExtents(*list)
	}
	s.resolve()
	return nil
}

// Close ends the workers at once: what is saved then is of no use. After Wait it
// does nothing.
func (s *Saver) Close() error {
	s.pipe.fail(errClosed)
	s.pipe.end() //nolint:errcheck // it is told by Read and Wait, or is our own
	return s.closeTasks()
}

func (s *Saver) closeTasks() error {
	var all error
	for _, t := range s.tasks {
		all = errors.Join(all, t.close())
	}
	s.tasks = nil
	return all
}

// batcher collects runs of pages into jobs of one chunk.
type batcher struct {
	saver    *Saver
	job      job
	keepZero bool // of the pages that come next
}

func (b *batcher) add(r span) error {
	for r.start < r.end {
		room := uint64(chunkPages-b.job.pages) * PageSize
		part := span{r.start, min(r.end, r.start+room), b.keepZero}
		if n := len(b.job.spans); n > 0 && b.job.spans[n-1].end == part.start && b.job.spans[n-1].keepZero == b.keepZero {
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
	return b.saver.pipe.add(&j)
}

// fill reads a job's pages. Of one whose memory has gone nothing is left to keep
// but that it was not read.
func (s *Saver) fill(j *job) error {
	raw := j.buf.b[:j.pages*PageSize]
	err := j.src.read(raw, j.spans)
	if errors.Is(err, errVanished) {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, r := range j.spans {
			*j.list = append(*j.list, &blob.Extent{Start: r.start, Pages: uint32((r.end - r.start) / PageSize), Chunk: lostChunk})
		}
		s.extents[j.list] = struct{}{}
		j.spans, j.pages = nil, 0
		return nil
	}
	if err != nil {
		return err
	}
	s.copied.Add(int64(len(raw)))
	return nil
}

// keep stores what must be stored of a job's pages.
func (s *Saver) keep(j *job) error {
	p, err := pack(j, s.store)
	if err != nil {
		return err
	}
	if p.kept > 0 {
		put := s.store.put
		if j.plain {
			put = s.store.putRaw
		}
		if err := put(p.chunk, p.raw[:p.kept*PageSize]); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	*j.list = append(*j.list, p.extents...)
	s.extents[j.list] = struct{}{}
	return nil
}

var zeroPage [PageSize]byte

// packer brings the pages of a job that must be stored to the front of its
// buffer, and notes where each page is going to be.
type packer struct {
	store   *Store
	raw     []byte
	kept    int    // pages at the front of raw
	chunk   uint32 // of those; given out with the first
	extents []*blob.Extent
}

// pack drops pages of zeros, and those that the store has already.
func pack(j *job, store *Store) (*packer, error) {
	p := &packer{store: store, raw: j.buf.b[:j.pages*PageSize]}
	back := store.lend()
	defer store.giveBack(back)
	rest := p.raw
	for _, r := range j.spans {
		for addr := r.start; addr < r.end; addr += PageSize {
			page := rest[:PageSize]
			rest = rest[PageSize:]
			switch {
			case !r.keepZero && string(page) == string(zeroPage[:]):
				if j.noteZero {
					p.extents = appendPage(p.extents, addr, zeroChunk)
				}
			case j.alone:
				at := p.next()
				p.keep(page, at)
				p.note(addr, at)
			default:
				at, err := p.place(page, back)
				if err != nil {
					return nil, fmt.Errorf("page store: compare with chunk %d: %w", at.chunk, err)
				}
				p.note(addr, at)
			}
		}
	}
	return p, nil
}

// place is where a page with the same bytes is stored, or else its own.
func (p *packer) place(page []byte, back *readBack) (slot, error) {
	mark := fingerprint(page)
	at, met := p.store.twins.meet(mark, p)
	if !met {
		p.keep(page, at)
		return at, nil
	}
	same, err := p.same(at, page, back)
	switch {
	case err != nil:
		return at, err
	case same:
		p.store.worth.twins.Add(1)
	default:
		at = p.next()
		p.keep(page, at)
	}
	p.store.twins.remember(mark, at)
	return at, nil
}

// same says whether the page at a slot has these bytes.
func (p *packer) same(at slot, page []byte, back *readBack) (bool, error) {
	if p.kept > 0 && at.chunk == p.chunk { // in this very buffer
		return string(p.raw[at.page*PageSize:(at.page+1)*PageSize]) == string(page), nil
	}
	return back.same(at, page)
}

// next is the next place of the job's own chunk.
func (p *packer) next() slot {
	if p.kept == 0 {
		p.chunk = p.store.reserve()
	}
	return slot{p.chunk, uint32(p.kept)}
}

// keep brings a page to the next place, where it is already if nothing was
// dropped yet.
func (p *packer) keep(page []byte, at slot) {
	if to := p.raw[at.page*PageSize:]; &to[0] != &page[0] {
		copy(to, page)
	}
	p.kept++
}

// note adds a page to the extents.
func (p *packer) note(addr uint64, at slot) {
	if n := len(p.extents); n > 0 {
		l := p.extents[n-1]
		if l.Start+uint64(l.Pages)*PageSize == addr && l.Chunk == at.chunk && l.Page+l.Pages == at.page {
			l.Pages++
			return
		}
	}
	p.extents = append(p.extents, &blob.Extent{Start: addr, Pages: 1, Chunk: at.chunk, Page: at.page})
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
