package mem

import (
	"context"
	"fmt"
	"os"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/sys"
)

// HugeSize is the size of a huge page, transparent or of the host's pool: the
// only one that the engine knows.
const HugeSize = 2 << 20

// appendHuge adds what a scan found, if it is whole huge pages.
func appendHuge(list []*blob.Huge, r span) []*blob.Huge {
	if r.start%HugeSize != 0 || r.end%HugeSize != 0 {
		return list
	}
	count := uint32((r.end - r.start) / HugeSize)
	if n := len(list); n > 0 && list[n-1].Start+uint64(list[n-1].Count)*HugeSize == r.start {
		list[n-1].Count += count
		return list
	}
	return append(list, &blob.Huge{Start: r.start, Count: count})
}

// hugeRegions lists what huge pages cover.
func hugeRegions(list []*blob.Huge) []Region {
	out := make([]Region, 0, len(list))
	for _, h := range list {
		out = append(out, Region{h.Start, h.Start + uint64(h.Count)*HugeSize})
	}
	return out
}

// hugeStep is how many huge pages are made in one go.
const hugeStep = 16

// hugePieces cuts runs of huge pages into pieces that one worker makes at once.
func hugePieces(list []*blob.Huge) []Region {
	var out []Region
	for _, h := range list {
		for n := uint32(0); n < h.Count; n += hugeStep {
			start := h.Start + uint64(n)*HugeSize
			out = append(out, Region{start, start + uint64(min(hugeStep, h.Count-n))*HugeSize})
		}
	}
	return out
}

// MakeHuge gives tasks the huge pages that list holds for each of them, of zeros
// still, from all cores. Where the kernel has none to give, or may not, the memory
// is filled with small pages later.
//
// A fault makes a huge page where the mapping's advice or the host's setting
// allows; where neither does, because a program or the kernel had collapsed small
// pages, MADV_COLLAPSE makes one of the first page and nothing: it asks for one
// page to be there, and for no permission (madvise(2), Linux 6.1).
func MakeHuge(ctx context.Context, list map[*TaskTarget][]*blob.Huge) error {
	type piece struct {
		*TaskTarget
		Region
	}
	var pieces []piece
	for t, huge := range list {
		for _, r := range hugePieces(huge) {
			pieces = append(pieces, piece{t, r})
		}
	}
	next := atomic.Int64{}
	group, ctx := errgroup.WithContext(ctx)
	for range min(fillers(), len(pieces)) {
		group.Go(func() error {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(pieces) {
					return nil
				}
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				if err := pieces[i].makeHuge(pieces[i].Region); err != nil {
					return err
				}
			}
		})
	}
	return group.Wait()
}

// makeHuge makes the huge pages of r.
func (t *TaskTarget) makeHuge(r Region) error {
	for at := r.Start; at < r.End; at += HugeSize {
		if err := t.write(zeroPage[:1], []run{{at, 0, 1}}); err != nil {
			return err
		}
	}
	huge, err := t.allHuge(r)
	if err != nil || huge {
		return err
	}
	pidfd, err := unix.PidfdOpen(t.pid, 0)
	if err != nil {
		return fmt.Errorf("pidfd_open: %w", err)
	}
	defer unix.Close(pidfd)
	_ = sys.ProcessMadvise(pidfd, r.Start, r.End, unix.MADV_COLLAPSE) //nolint:errcheck // none left: small ones will do
	return nil
}

// allHuge says whether all of r is huge pages.
func (t *TaskTarget) allHuge(r Region) (bool, error) {
	pagemap, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", t.pid))
	if err != nil {
		return false, err
	}
	defer pagemap.Close() //nolint:errcheck // read only
	scan := sys.PageScan{Start: r.Start, End: r.End, Mask: sys.PageHuge, Return: sys.PageHuge}
	vec := make([]sys.PageRegion, 1)
	n, err := scan.Scan(pagemap, vec)
	return n == 1 && vec[0].Start <= r.Start && vec[0].End >= r.End, err
}

// MayGrowHuge says whether filling vmas with extents by faults could make huge
// pages that were none: there is a mapping with room for one that gets pages.
func MayGrowHuge(vmas []*blob.VMA, extents []*blob.Extent) bool {
	for _, v := range vmas {
		if v.Kind != blob.VMA_ANON || v.Flags&uint64(blob.VMAFlag_VMA_HUGETLB) != 0 {
			continue
		}
		var n uint64
		n, extents = bytesWithin(extents, v.Start, v.End)
		if first := (v.Start + HugeSize - 1) &^ (HugeSize - 1); n > 0 && first+HugeSize <= v.End {
			return true
		}
	}
	return false
}

// HugePool counts the huge pages of the host's pool that mms need: those that
// mmap reserves, and in mappings that reserve none those that hold something.
func HugePool(mms []*blob.MM) uint64 {
	var need uint64
	for _, mm := range mms {
		for _, v := range mm.Vmas {
			switch {
			case v.Flags&uint64(blob.VMAFlag_VMA_HUGETLB) == 0:
			case v.Flags&uint64(blob.VMAFlag_VMA_NORESERVE) == 0:
				need += (v.End - v.Start) / HugeSize
			default:
				need += hugeWithin(mm.Extents, v)
			}
		}
	}
	return need
}

// hugeWithin counts the huge pages of v that have an extent in them.
func hugeWithin(extents []*blob.Extent, v *blob.VMA) (n uint64) {
	next := v.Start // the first huge page that is not counted yet
	for _, e := range extents {
		from, to := bounds(e)
		from, to = max(from&^(HugeSize-1), next), min(to, v.End)
		if from < to {
			more := (to - from + HugeSize - 1) / HugeSize
			n += more
			next = from + more*HugeSize
		}
	}
	return n
}
