// Package mem saves and restores mappings and their pages.
//
// A [Saver] finds the pages of each address space that can't be had again
// (touched anonymous memory, copied-on-write pages of files, shared memory
// without a name), copies them with a fixed number of workers into buffers of a
// fixed pool and from there into the page store, and keeps only the index: its
// own memory does not grow with the container's. [Saver.Read] is the moment from
// which the container is not needed any more, [Saver.Wait] the one at which all
// is written. Pages are grouped in chunks of up to [ChunkSize] bytes, each
// compressed by itself, if that pays, and with its checksum. Pages of zeros are
// not stored where nothing else lies beneath them; pages that several address
// spaces share copy-on-write, and most of those with the same bytes, are stored
// once.
//
// On the way back [Pages] reads any chunk of the store, checks and decodes it. A
// [Plan] says what each chunk's pages are needed for, and [Plan.Fill] reads every
// chunk once and hands it to all who need it: for the memory of a task that is a
// [TaskTarget]. [Inherit] says which pages need none of this, because a child gets
// them from its parent.
package mem

import "runtime"

// PageSize is the only page size of the architectures that the engine knows.
const PageSize = 4096

// ChunkSize is the most page data that one chunk of the store holds, in bytes.
const ChunkSize = 1 << 20

// chunkPages is ChunkSize in pages.
const chunkPages = ChunkSize / PageSize

// workers is how many chunks are worked on at once: two saturate the page
// allocator of small machines, and each takes memory of its own.
func workers() int { return min(max(runtime.NumCPU(), 2), 8) }
