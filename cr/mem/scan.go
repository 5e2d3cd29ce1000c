package mem

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/sys"
)

// scanBatch is how many runs one PAGEMAP_SCAN returns at most.
const scanBatch = 4096

// span is a run of pages: [start, end) in bytes.
type span struct {
	start, end uint64
	keepZero   bool // a page of zeros is stored like any other
}

// scanVMA calls f for each run of pages of v that must be saved, in order, and
// says whether they are transparent huge pages.
//
// In anonymous memory those are the pages that are present or swapped out, but
// for the shared zero page. A private mapping of a file needs only those that
// were copied on write: present, and not the file's own. (PAGE_IS_FILE costs ten
// times as much to ask, so it is asked only there.)
func scanVMA(pagemap *os.File, v *blob.VMA, vec []sys.PageRegion, f func(s span, huge bool) error) error {
	scan := sys.PageScan{
		Start: v.Start, End: v.End,
		AnyOf:    sys.PagePresent | sys.PageSwapped,
		Mask:     sys.PagePFNZero,
		Inverted: sys.PagePFNZero,
		Return:   sys.PagePresent,
	}
	switch {
	case v.Kind == blob.VMA_FILE:
		scan.Mask |= sys.PageFile
		scan.Inverted |= sys.PageFile
	case v.Flags&uint64(blob.VMAFlag_VMA_HUGETLB) == 0:
		scan.Return |= sys.PageHuge
	}
	return eachRegion(pagemap, scan, vec, func(r sys.PageRegion) error {
		return f(span{start: r.Start, end: r.End}, r.Categories&sys.PageHuge != 0)
	})
}

// eachRegion calls f for each run that scan finds. vec is room for some of them.
func eachRegion(pagemap *os.File, scan sys.PageScan, vec []sys.PageRegion, f func(sys.PageRegion) error) error {
	for {
		n, err := scan.Scan(pagemap, vec)
		if err != nil {
			return err
		}
		for _, r := range vec[:n] {
			if err := f(r); err != nil {
				return err
			}
		}
		if n < len(vec) {
			return nil
		}
		scan.Start = vec[n-1].End
	}
}

// Bits of an entry of /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst).
const (
	pmPFN       = 1<<55 - 1
	pmExclusive = 1 << 56
	pmPresent   = 1 << 63
)

// pageFrames reads the pagemap entries of s; the slice is valid until the next
// call with the same buffer.
func pageFrames(pagemap *os.File, s span, buf []byte) ([]uint64, error) {
	n := int((s.end - s.start) / PageSize * 8)
	_, err := pagemap.ReadAt(buf[:n], int64(s.start/PageSize*8))
	if errors.Is(err, io.EOF) { // how the file says that its memory has gone
		err = unix.ESRCH
	}
	if err != nil {
		return nil, fmt.Errorf("pagemap of %x-%x: %w", s.start, s.end, err)
	}
	return sys.PageEntries(buf[:n]), nil
}

// eachFrame calls f for each page of r with its entry in the pagemap. buf is
// room for those of one chunk.
func eachFrame(pagemap *os.File, r span, buf []byte, f func(addr, entry uint64) error) error {
	for r.start < r.end {
		part := span{start: r.start, end: min(r.end, r.start+ChunkSize)}
		frames, err := pageFrames(pagemap, part, buf)
		if err != nil {
			return err
		}
		for i, e := range frames {
			if err := f(part.start+uint64(i)*PageSize, e); err != nil {
				return err
			}
		}
		r.start = part.end
	}
	return nil
}
