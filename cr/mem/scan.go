package mem

import (
	"fmt"
	"os"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/sys"
)

// scanBatch is how many runs one PAGEMAP_SCAN returns at most.
const scanBatch = 4096

// span is a run of pages: [start, end) in bytes.
type span struct{ start, end uint64 }

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
	for {
		n, err := scan.Scan(pagemap, vec)
		if err != nil {
			return err
		}
		for _, r := range vec[:n] {
			if err := f(span{r.Start, r.End}, r.Categories&sys.PageHuge != 0); err != nil {
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
	if _, err := pagemap.ReadAt(buf[:n], int64(s.start/PageSize*8)); err != nil {
		return nil, fmt.Errorf("pagemap of %x-%x: %w", s.start, s.end, err)
	}
	return sys.PageEntries(buf[:n]), nil
}
