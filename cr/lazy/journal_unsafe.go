package lazy

import (
	"sync/atomic"
	"unsafe"
)

// counter is the journal's count of entries in the shared memory: what is before
// it in program order must be there when another process sees it.
func counter(b []byte) *atomic.Uint32 { return (*atomic.Uint32)(unsafe.Pointer(&b[journalCountAt])) }
