package mem

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/sys"
)

// A Tracker follows which private pages of one process are written while it
// runs, so that most of them can be saved before it is stopped.
//
// A userfaultfd with WP_ASYNC watches the memory. PAGEMAP_SCAN lists the pages
// that were written since they were protected last, and protects them again, in
// one step for each page: what is read afterwards is what the page holds, or the
// page is in the next list. The kernel resolves a write to a protected page by
// itself, so nobody waits for us, and if we die nothing is left.
//
// ESRCH from any method says that the memory has gone: its process has ended, or
// has executed another program.
//
// What a list can't show is not trusted: memory that is not watched when it is
// asked about (mapped since, moved by mremap, another's by fork) counts as
// written. (Linux 6.7; Documentation/admin-guide/mm/pagemap.rst.)
type Tracker struct {
	pid     int
	uffd    *os.File
	pagemap *os.File
	watched []span

	pass  []*blob.Extent // where the pages of the pass that goes on are
	base  []*blob.Extent // where those of all passes before are; see setBase
	known []span         // that base tells of
	lost  []span         // those of them that could not be read
	huge  []*blob.Huge   // pages that were huge when they were protected first
	full  bool           // base has all that was present then, but for zeros
	goOn  bool           // it will be asked again after the process has been saved
	last  []span         // what was copied and protected when it was saved last
}

// Range is a range of addresses.
type Range struct{ Start, End uint64 }

// NewTracker begins to follow a process with a userfaultfd of its memory, which
// becomes the tracker's. Precondition: nobody has used the userfaultfd yet.
// EINVAL means that the kernel can't do it.
func NewTracker(pid int, uffd *os.File) (*Tracker, error) {
	if _, err := sys.UFFDHandshake(uffd, sys.UFFDWPAsync|sys.UFFDWPUnpopulated); err != nil {
		return nil, errors.Join(fmt.Errorf("userfaultfd of process %d: %w", pid, err), uffd.Close())
	}
	pagemap, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", pid))
	if err != nil {
		return nil, errors.Join(err, uffd.Close())
	}
	return &Tracker{pid: pid, uffd: uffd, pagemap: pagemap}, nil
}

// AdoptTracker goes on with a tracker that another process of ours had: uffd is
// its userfaultfd, which becomes the new tracker's, and watched what it watched.
// base is where the pages lie that were not written since the process was saved
// last, with GoOn set; nil: nobody knows.
func AdoptTracker(pid int, uffd *os.File, watched []Range, base []*blob.Extent) (*Tracker, error) {
	pagemap, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", pid))
	if err != nil {
		return nil, errors.Join(err, uffd.Close())
	}
	t := &Tracker{pid: pid, uffd: uffd, pagemap: pagemap, full: base != nil}
	t.setBase(base)
	for _, w := range watched {
		t.watched = append(t.watched, span{start: w.Start, end: w.End})
	}
	return t, nil
}

// GoOn says that the tracker will be asked what was written after the process is
// saved: the save protects what it copies, and watches what is new.
func (t *Tracker) GoOn() { t.goOn = true }

// Discarded says that what the last save of the process copied is given up: where
// a pass before has put it is not what it holds, though it is protected.
func (t *Tracker) Discarded() {
	var lost []*blob.Extent
	for _, s := range union(t.last, nil) {
		lost = append(lost, &blob.Extent{Start: s.start, Pages: uint32((s.end - s.start) / PageSize), Chunk: lostChunk})
	}
	t.setBase(overlay(t.base, lost))
	t.last = nil
}

// setBase says where the pages of all passes are. What the container would have to
// wait for is made of it now: a list of a million extents takes milliseconds.
func (t *Tracker) setBase(base []*blob.Extent) {
	t.base, t.known, t.lost = base, joined(base, nil), joined(base, func(e *blob.Extent) bool { return e.Chunk == lostChunk })
}

// File is the tracker's userfaultfd, which stays its own.
func (t *Tracker) File() *os.File { return t.uffd }

// Watched is what is watched, for [AdoptTracker].
func (t *Tracker) Watched() []Range {
	out := make([]Range, 0, len(t.watched))
	for _, w := range t.watched {
		out = append(out, Range{w.start, w.end})
	}
	return out
}

// Watch adds the mapping [start, end), of private anonymous memory, unless it is
// watched already. One that can't be watched is left out: it counts as written.
func (t *Tracker) Watch(start, end uint64) error {
	if t.Watches(start, end) {
		return nil
	}
	_, err := t.register(start, end)
	return err
}

// register says whether the kernel watches the mapping from now on.
func (t *Tracker) register(start, end uint64) (watched bool, err error) {
	err = sys.UFFDRegister(t.uffd, start, end, sys.UFFDWP)
	switch {
	case err == nil:
		t.watched = union(t.watched, []span{{start: start, end: end}})
		return true, nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EPERM), errors.Is(err, unix.EBUSY), errors.Is(err, unix.ENOMEM):
		return false, nil // gone or changed since it was listed, not writable, or the program's own userfaultfd watches it
	}
	return false, err
}

// Watches says whether [start, end) was watched when Watch was called last.
func (t *Tracker) Watches(start, end uint64) bool {
	return slices.ContainsFunc(t.watched, func(w span) bool { return w.start <= start && end <= w.end })
}

// Close ends it, and unless another process goes on with it makes the pages huge
// again that were split because they were protected. It takes 30 ms for a GiB: the
// process had better not wait for it.
func (t *Tracker) Close() error {
	err := t.uffd.Close()
	if !t.goOn {
		err = errors.Join(err, t.mend())
	}
	return errors.Join(err, t.pagemap.Close())
}

// mend asks the kernel to make huge pages of the small ones that a huge one was
// split into, as far as they are all there. That it can't is no error.
func (t *Tracker) mend() error {
	if len(t.huge) == 0 {
		return nil
	}
	pidfd, err := unix.PidfdOpen(t.pid, 0)
	if err != nil {
		return nil // it has ended
	}
	defer unix.Close(pidfd)
	for _, r := range hugeRegions(t.huge) {
		for at := r.Start; at < r.End; at += HugeSize {
			if isSplit(t.pagemap, at) {
				_ = sys.ProcessMadvise(pidfd, at, at+HugeSize, unix.MADV_COLLAPSE) //nolint:errcheck // see above
			}
		}
	}
	return nil
}

// isSplit says whether small pages fill the place of a huge one.
func isSplit(pagemap *os.File, at uint64) bool {
	vec := make([]sys.PageRegion, 1)
	scan := sys.PageScan{Start: at, End: at + HugeSize, Mask: sys.PagePresent, Return: sys.PagePresent | sys.PageHuge}
	n, err := scan.Scan(pagemap, vec)
	return err == nil && n == 1 && vec[0].Start == at && vec[0].End == at+HugeSize && vec[0].Categories&sys.PageHuge == 0
}

// changed is the scan for the pages that must be saved and were written.
func changed(s span) sys.PageScan {
	return sys.PageScan{
		Start: s.start, End: s.end,
		AnyOf:    sys.PagePresent | sys.PageSwapped,
		Mask:     sys.PageWritten | sys.PagePFNZero,
		Inverted: sys.PagePFNZero,
		Return:   sys.PagePresent,
	}
}

// Written is how many bytes have been written since the last pass.
func (t *Tracker) Written() (bytes int64, err error) {
	vec := make([]sys.PageRegion, scanBatch)
	for _, w := range t.watched {
		err := eachRegion(t.pagemap, changed(w), vec, func(r sys.PageRegion) error {
			bytes += int64(r.End - r.Start)
			return nil
		})
		if err != nil {
			return 0, err
		}
	}
	return bytes, nil
}

// Protect begins a round without saving anything: what is written from now on
// is counted by Written.
func (t *Tracker) Protect() error {
	if err := t.noteHuge(); err != nil {
		return err
	}
	for _, w := range t.watched {
		scan := changed(w)
		scan.Protect = true
		if _, err := scan.Scan(t.pagemap, nil); err != nil {
			return err
		}
	}
	return nil
}

// First hands what was not written since Protect to s, and returns how many
// bytes that are: what was written is likely to be written again. See [Tracker.Pass].
// It asks goOn again and again whether to go on, and tells it how many bytes that are
// so far.
func (t *Tracker) First(s *Saver, sharing bool, goOn func(bytes int64) error) (bytes int64, err error) {
	const step = 64 << 20
	asked, so := int64(0), int64(0)
	for _, w := range t.watched {
		scan := changed(w)
		scan.Inverted |= sys.PageWritten
		n, err := t.hand(s, sharing, scan, func(n int64) error {
			if so += n; so-asked < step {
				return nil
			}
			asked = so
			return goOn(so)
		})
		if bytes += n; err != nil {
			return bytes, err
		}
	}
	return bytes, nil
}

// Pass hands what was written since the last pass, or since Protect, to s, and
// returns how many bytes that are. With sharing set, pages that other processes
// map too are left for the time when all are stopped: only then can it be told
// which are the same. The caller calls Passed when s has saved them.
func (t *Tracker) Pass(s *Saver, sharing bool) (bytes int64, err error) {
	for _, w := range t.watched {
		scan := changed(w)
		scan.Protect = true
		n, err := t.hand(s, sharing, scan, nil)
		if bytes += n; err != nil {
			return bytes, err
		}
	}
	return bytes, nil
}

// hand hands the pages that a scan finds to s, and tells did, unless it is nil,
// of every run.
func (t *Tracker) hand(s *Saver, sharing bool, scan sys.PageScan, did func(bytes int64) error) (bytes int64, err error) {
	b := &batcher{saver: s, job: job{src: &liveMemory{taskMemory{pid: t.pid}}, noteZero: true, list: &t.pass}}
	add := func(r span) error {
		n := int64(r.end - r.start)
		bytes += n
		if err := b.add(r); err != nil || did == nil {
			return err
		}
		return did(n)
	}
	each := add
	if sharing {
		each = func(r span) error { return t.exclusive(s, r, add) }
	}
	err = eachRegion(t.pagemap, scan, s.regions, func(r sys.PageRegion) error { return each(span{start: r.Start, end: r.End}) })
	if err != nil {
		return bytes, err
	}
	return bytes, b.flush()
}

// Passed ends a pass: the pages that it handed over are saved.
func (t *Tracker) Passed() {
	sortExtents(t.pass)
	t.setBase(overlay(t.base, t.pass))
	t.pass = nil
}

// picture is what there is of a mapping.
type picture struct {
	clean []span // pages that are as a pass has saved them, and others that are in rest, too
	rest  []span // those that must be copied
	huge  []*blob.Huge
}

// manyRuns is how many runs of written pages are looked at one by one. A call
// costs as much as to look at some hundred pages.
const manyRuns = 512

// split sorts the pages of v that must be saved. The process is stopped; pagemap
// was opened since: that of the tracker is of the memory that it had before it
// executed another program.
//
// The container waits, so only what was written is looked at closely: to tell the
// written pages alone takes the kernel a fifth of the time that it takes to tell
// them from the others (the fast path of pagemap_scan_pmd_entry in
// fs/proc/task_mmu.c). They include places where no page is.
func (t *Tracker) split(pagemap *os.File, v *blob.VMA, vec []sys.PageRegion) (p picture, err error) {
	scan := sys.PageScan{Start: v.Start, End: v.End, Mask: sys.PageWritten, Return: sys.PageWritten, Watched: true}
	var written []span
	err = eachRegion(pagemap, scan, vec, func(r sys.PageRegion) error {
		written = append(written, span{start: r.Start, end: r.End})
		return nil
	})
	if errors.Is(err, unix.EPERM) {
		return t.unwatched(pagemap, v, vec)
	}
	if err != nil {
		return p, err
	}
	if len(written) > manyRuns {
		written = []span{{start: v.Start, end: v.End}}
	}
	clean, err := t.dirty(&p, pagemap, written, t.goOn, vec)
	if err != nil {
		return p, err
	}
	clean = union(clean, except([]span{{start: v.Start, end: v.End}}, written))
	if err := t.clean(&p, pagemap, clean, vec); err != nil {
		return p, err
	}
	return p, t.splitHuge(&p, pagemap, v, vec)
}

// dirty looks closely at spans: what is there and was written must be copied.
// It returns what is there and was not.
//
// With protect set, all of spans must be watched: the kernel passes over what is
// not.
func (t *Tracker) dirty(p *picture, pagemap *os.File, spans []span, protect bool, vec []sys.PageRegion) (clean []span, err error) {
	for _, s := range spans {
		scan := changed(s)
		scan.Mask &^= sys.PageWritten
		scan.Return |= sys.PageWritten | sys.PageHuge
		scan.Protect = protect
		err := eachRegion(pagemap, scan, vec, func(r sys.PageRegion) error {
			s := span{start: r.Start, end: r.End}
			if r.Categories&sys.PageWritten == 0 {
				clean = append(clean, s)
			} else {
				p.rest = append(p.rest, s)
			}
			if r.Categories&sys.PageHuge != 0 {
				p.huge = appendHuge(p.huge, s)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return clean, nil
}

// clean notes spans, which were not written. What no pass has saved is copied, if
// it is there at all.
func (t *Tracker) clean(p *picture, pagemap *os.File, spans []span, vec []sys.PageRegion) error {
	p.clean = spans
	p.rest = append(p.rest, common(t.lost, spans)...)
	if t.full {
		return nil
	}
	for _, s := range except(spans, t.known) {
		scan := changed(s)
		scan.Mask &^= sys.PageWritten
		err := eachRegion(pagemap, scan, vec, func(r sys.PageRegion) error {
			p.rest = append(p.rest, span{start: r.Start, end: r.End})
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// savedIn returns where the pages in spans are that a pass has put into the store.
func savedIn(base []*blob.Extent, spans []span) []*blob.Extent {
	return slices.DeleteFunc(inSpans(base, spans), func(e *blob.Extent) bool { return !inStore(e) })
}

// splitHuge notes the huge pages of v, also those that were split because they
// are protected.
func (t *Tracker) splitHuge(p *picture, pagemap *os.File, v *blob.VMA, vec []sys.PageRegion) error {
	were := hugeIn(t.huge, v.Start, v.End)
	if len(were) == 0 {
		return nil
	}
	scan := sys.PageScan{Start: v.Start, End: v.End, Mask: sys.PageHuge, Return: sys.PageHuge}
	err := eachRegion(pagemap, scan, vec, func(r sys.PageRegion) error {
		p.huge = mergeHuge(p.huge, appendHuge(nil, span{start: r.Start, end: r.End}))
		return nil
	})
	if err != nil {
		return err
	}
	for _, r := range hugeRegions(were) {
		for at := r.Start; at < r.End; at += HugeSize {
			if len(hugeIn(p.huge, at, at+HugeSize)) == 0 && isSplit(pagemap, at) {
				p.huge = mergeHuge(p.huge, []*blob.Huge{{Start: at, Count: 1}})
			}
		}
	}
	return nil
}

// unwatched is split for a mapping that is not watched: all of it must be copied.
func (t *Tracker) unwatched(pagemap *os.File, v *blob.VMA, vec []sys.PageRegion) (p picture, err error) {
	watched := false
	if t.goOn {
		if watched, err = t.register(v.Start, v.End); err != nil {
			return p, err
		}
	}
	_, err = t.dirty(&p, pagemap, []span{{start: v.Start, end: v.End}}, watched, vec)
	return p, err
}

// noteHuge remembers the huge pages that there are: the kernel splits one that is
// protected when it is written.
func (t *Tracker) noteHuge() error {
	vec := make([]sys.PageRegion, scanBatch)
	for _, w := range t.watched {
		scan := sys.PageScan{Start: w.start, End: w.end, Mask: sys.PageHuge, Return: sys.PageHuge}
		err := eachRegion(t.pagemap, scan, vec, func(r sys.PageRegion) error {
			t.huge = appendHuge(t.huge, span{start: r.Start, end: r.End})
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// mergeHuge returns the huge pages of both lists.
func mergeHuge(a, b []*blob.Huge) (out []*blob.Huge) {
	var spans []span
	for _, h := range slices.Concat(a, b) {
		spans = append(spans, span{start: h.Start, end: h.Start + uint64(h.Count)*HugeSize})
	}
	for _, s := range union(spans, nil) {
		out = appendHuge(out, s)
	}
	return out
}

// liveMemory reads the memory of a running process. What has gone meanwhile is
// errVanished.
type liveMemory struct{ taskMemory }

var errVanished = errors.New("memory has gone while it was read")

func (m *liveMemory) read(b []byte, spans []span) error {
	if err := m.taskMemory.read(b, spans); err != nil {
		return fmt.Errorf("%w: %w", errVanished, err)
	}
	return nil
}

// exclusive calls add for the pages of r that no other process maps. The others
// are protected by now like those that are saved, so it must be noted that what
// may have been saved of them is not what they hold.
func (t *Tracker) exclusive(s *Saver, r span, add func(span) error) error {
	var shared []*blob.Extent
	err := eachFrame(t.pagemap, r, s.frames, func(addr, entry uint64) error {
		if entry&pmPresent != 0 && entry&pmExclusive == 0 {
			shared = appendPage(shared, addr, lostChunk)
			return nil
		}
		return add(span{start: addr, end: addr + PageSize})
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	t.pass = append(t.pass, shared...)
	return err
}
