// Package mem saves and restores mappings and their pages.
//
// A [Saver] finds the pages of each address space that can't be had again
// (touched anonymous memory, copied-on-write pages of files, shared memory
// without a name), copies them with a fixed number of workers straight into the
// page store and keeps only the index: its own memory does not grow with the
// container's. Pages are grouped in chunks of up to [ChunkSize] bytes, each with
// its checksum. Pages of zeros are not stored where nothing else lies beneath
// them; pages that several address spaces share copy-on-write are stored once.
//
// On the way back a [Plan] says what each chunk's pages are needed for, and
// [Plan.Fill] reads every chunk once, checks it, and hands it to all who need
// it: for the memory of a task that is a [TaskTarget].
// [Inherit] says which pages need none of this, because a child gets them from its
// parent.
package mem

// PageSize is the only page size of the architectures that the engine knows.
const PageSize = 4096

// ChunkSize is the most page data that one chunk of the store holds, in bytes.
const ChunkSize = 1 << 20

// chunkPages is ChunkSize in pages.
const chunkPages = ChunkSize / PageSize
