package procfs

// PageMapEntry is one entry of /proc/PID/pagemap, 8 bytes in the host's order
// (Documentation/admin-guide/mm/pagemap.rst).
type PageMapEntry uint64

const (
	pageFrame     PageMapEntry = 1<<55 - 1
	pageSoftDirty PageMapEntry = 1 << 55
	pageExclusive PageMapEntry = 1 << 56
	pageUffdWP    PageMapEntry = 1 << 57
	pageGuard     PageMapEntry = 1 << 58
	pageFile      PageMapEntry = 1 << 61
	pageSwapped   PageMapEntry = 1 << 62
	pagePresent   PageMapEntry = 1 << 63
)

// Present tells whether the page is in memory.
func (e PageMapEntry) Present() bool { return e&pagePresent != 0 }

// Swapped tells whether the page is in swap, or is a marker in a place without a
// page: an armed userfaultfd leaves those in holes.
func (e PageMapEntry) Swapped() bool { return e&pageSwapped != 0 }

// File tells whether the page belongs to a file or to shared memory.
func (e PageMapEntry) File() bool { return e&pageFile != 0 }

// Guard tells whether the page is a guard (MADV_GUARD_INSTALL, Linux 6.15).
func (e PageMapEntry) Guard() bool { return e&pageGuard != 0 }

// UffdWP tells whether userfaultfd write-protects the page.
func (e PageMapEntry) UffdWP() bool { return e&pageUffdWP != 0 }

// Exclusive tells whether the page is mapped in this place only.
func (e PageMapEntry) Exclusive() bool { return e&pageExclusive != 0 }

// SoftDirty tells whether the page was written since clear_refs. Kernels without
// CONFIG_MEM_SOFT_DIRTY always say no.
func (e PageMapEntry) SoftDirty() bool { return e&pageSoftDirty != 0 }

// Frame is the number of the page's frame; 0 if the page is not present or the
// reader lacks CAP_SYS_ADMIN.
func (e PageMapEntry) Frame() uint64 {
	if !e.Present() {
		return 0
	}
	return uint64(e & pageFrame)
}
