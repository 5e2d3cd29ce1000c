package mem

import (
	"fmt"
	"io"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/errs"
)

// Pages reads a page store, chunk by chunk and in any order. It is safe for
// concurrent use.
type Pages struct {
	index *blob.PageStore
	f     io.ReaderAt
}

// OpenPages reads the store whose record is index, which may be nil, from f.
// Both stay the caller's. Precondition: the image that index is of was validated.
func OpenPages(index *blob.PageStore, f io.ReaderAt) *Pages { return &Pages{index, f} }

// Len is how many chunks there are.
func (p *Pages) Len() int { return len(p.index.GetChunks()) }

// Chunk reads chunk i, checks it and returns its pages, which lie in buf. buf
// holds ChunkSize bytes. An error names the chunk and wraps errs.ErrCorrupt or
// errs.ErrVersion; then nothing in buf is of use.
func (p *Pages) Chunk(i int, buf []byte) ([]byte, error) {
	if i < 0 || i >= p.Len() {
		return nil, fmt.Errorf("chunk %d of %d: %w", i, p.Len(), errs.ErrCorrupt)
	}
	return readChunk(p.f, i, p.index.Chunks[i], buf)
}
