package sys

import (
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Categories of a page as PAGEMAP_SCAN reports them (include/uapi/linux/fs.h,
// Linux 6.7).
const (
	PageWPAllowed = 1 << 0
	PageWritten   = 1 << 1
	PageFile      = 1 << 2
	PagePresent   = 1 << 3
	PageSwapped   = 1 << 4
	PagePFNZero   = 1 << 5
	PageHuge      = 1 << 6
)

// PageRegion is a run of pages of the same categories: struct page_region.
type PageRegion struct {
	Start, End uint64
	Categories uint64
}

// PageScan is what one PAGEMAP_SCAN call looks for. A page matches if its
// categories, with those in Inverted flipped, include all of Mask and, unless
// AnyOf is 0, one of AnyOf.
type PageScan struct {
	Start, End uint64
	Inverted   uint64
	Mask       uint64
	AnyOf      uint64
	Return     uint64
	Protect    bool // write-protect what matches, in the same step; passes over what no UFFDWPAsync watches
	Watched    bool // answer EPERM where a mapping is not watched by UFFDWPAsync
}

type pmScanArg struct {
	size, flags                  uint64
	start, end, walkEnd          uint64
	vec, vecLen, maxPages        uint64
	inverted, mask, anyof, retMk uint64
}

const (
	ioctlPagemapScan = 0xc0606610
	pmScanProtect    = 1 << 0 // PM_SCAN_WP_MATCHING
	pmScanWatched    = 1 << 1 // PM_SCAN_CHECK_WPASYNC
)

// Scan fills vec with the runs that match, in order, and returns how many. If
// it is len(vec) there may be more: go on at the end of the last run. (The
// kernel's own walk_end can be stale, so it is not returned.) With an empty vec
// all that matches is protected and nothing is told. pagemap is an open
// /proc/PID/pagemap.
func (s *PageScan) Scan(pagemap *os.File, vec []PageRegion) (int, error) {
	arg := pmScanArg{
		size: uint64(unsafe.Sizeof(pmScanArg{})), start: s.Start, end: s.End,
		vec: uint64(uintptr(unsafe.Pointer(unsafe.SliceData(vec)))), vecLen: uint64(len(vec)),
		inverted: s.Inverted, mask: s.Mask, anyof: s.AnyOf, retMk: s.Return,
	}
	if s.Protect {
		arg.flags |= pmScanProtect
	}
	if s.Watched {
		arg.flags |= pmScanWatched
	}
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, pagemap.Fd(), ioctlPagemapScan, uintptr(unsafe.Pointer(&arg)))
	runtime.KeepAlive(vec)
	if errno != 0 {
		return 0, fmt.Errorf("PAGEMAP_SCAN of %x-%x: %w", s.Start, s.End, errno)
	}
	return int(n), nil
}

// PageEntries views the 8-byte entries of /proc/PID/pagemap that b holds, in the
// machine's byte order, without a copy.
func PageEntries(b []byte) []uint64 {
	if len(b) < 8 {
		return nil
	}
	return unsafe.Slice((*uint64)(unsafe.Pointer(unsafe.SliceData(b))), len(b)/8)
}
