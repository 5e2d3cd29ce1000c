package mem

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"
	"sync/atomic"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/errs"
)

// Pages reads a page store, chunk by chunk and in any order. It is safe for
// concurrent use.
type Pages struct {
	index   *blob.PageStore
	stores  []io.ReaderAt
	zstd    func() (*zstd.Decoder, error)
	scratch sync.Pool // *[]byte
}

// OpenPages reads the store whose record is index, which may be nil, from stores, in
// the order in which chunks number them. All stay the caller's. Precondition: the
// image that index is of was validated, and has as many stores.
func OpenPages(index *blob.PageStore, stores ...io.ReaderAt) *Pages {
	return &Pages{index: index, stores: stores, zstd: sync.OnceValues(newZstdDecoder), scratch: newScratch()}
}

// Len is how many chunks there are.
func (p *Pages) Len() int { return len(p.index.GetChunks()) }

// Chunk reads chunk i, checks it, decodes it and returns its pages, which lie in
// buf. buf holds ChunkSize bytes. An error names the chunk and wraps
// errs.ErrCorrupt or errs.ErrVersion, or is the store's; then nothing in buf is of use.
func (p *Pages) Chunk(i int, buf []byte) ([]byte, error) {
	if i < 0 || i >= p.Len() {
		return nil, fmt.Errorf("chunk %d of %d: %w", i, p.Len(), errs.ErrCorrupt)
	}
	c := p.index.Chunks[i]
	raw, err := p.read(c, buf)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p.Name(i), err)
	}
	return raw, nil
}

// Stored reads the bytes of chunk i as they are stored, into buf, and checks them.
func (p *Pages) Stored(i int, buf []byte) ([]byte, error) {
	c := p.index.Chunks[i]
	if int64(c.Stored) > int64(len(buf)) {
		return nil, fmt.Errorf("%s: %d bytes: %w", p.Name(i), c.Stored, errs.ErrVersion)
	}
	b := buf[:c.Stored]
	if err := p.stored(c, b); err != nil {
		return nil, fmt.Errorf("%s: %w", p.Name(i), err)
	}
	return b, nil
}

// Name says which chunk i is.
func (p *Pages) Name(i int) string {
	c := p.index.Chunks[i]
	if !p.index.Owns(c.Store) {
		return fmt.Sprintf("chunk %d at %d of the earlier checkpoint %s", i, c.Offset, p.index.Parents[c.Store-1].Dir)
	}
	file := p.index.File
	if c.Store > 0 {
		file = p.index.More[int(c.Store)-1-len(p.index.Parents)].File
	}
	return fmt.Sprintf("chunk %d at %d of %s", i, c.Offset, file)
}

// read looks at all sizes before it uses them.
func (p *Pages) read(c *blob.Chunk, buf []byte) ([]byte, error) {
	if int64(c.Raw) > int64(len(buf)) || c.Stored > c.Raw || c.Codec == blob.Chunk_RAW && c.Stored != c.Raw {
		return nil, fmt.Errorf("%d bytes for %d by codec %d: %w", c.Stored, c.Raw, c.Codec, errs.ErrVersion)
	}
	raw := buf[:c.Raw]
	if c.Codec == blob.Chunk_RAW {
		return raw, p.stored(c, raw)
	}
	b := p.scratch.Get().(*[]byte) //nolint:forcetypeassert,errcheck // it holds nothing else
	defer p.scratch.Put(b)
	if int64(c.Stored) > int64(len(*b)) {
		return nil, fmt.Errorf("%d bytes stored: %w", c.Stored, errs.ErrVersion)
	}
	stored := (*b)[:c.Stored]
	if err := p.stored(c, stored); err != nil {
		return nil, err
	}
	return raw, p.decode(c, stored, raw)
}

// stored reads the bytes of a chunk as they are in the file, and checks them.
func (p *Pages) stored(c *blob.Chunk, b []byte) error {
	n, err := p.stores[c.Store].ReadAt(b, int64(c.Offset))
	switch {
	case n == len(b):
	case err == nil || errors.Is(err, io.EOF):
		return fmt.Errorf("%d bytes of %d: %w", n, len(b), errs.ErrCorrupt)
	default: // it may be whole, and out of reach
		return err
	}
	if got := crc32.Checksum(b, castagnoli); got != c.Crc {
		return fmt.Errorf("checksum %08x, want %08x: %w", got, c.Crc, errs.ErrCorrupt)
	}
	return nil
}

func (p *Pages) decode(c *blob.Chunk, stored, raw []byte) error {
	var err error
	switch c.Codec {
	case blob.Chunk_S2:
		err = decodeS2(stored, raw)
	case blob.Chunk_ZSTD:
		z, e := p.zstd()
		if e != nil {
			return fmt.Errorf("zstd: %w", e)
		}
		err = decodeZstd(z, stored, raw)
	default:
		return fmt.Errorf("codec %d: %w", c.Codec, errs.ErrVersion)
	}
	if err != nil {
		return fmt.Errorf("not %d bytes by %s (%w): %w", c.Raw, c.Codec, err, errs.ErrCorrupt)
	}
	return nil
}

// Check reads every chunk and tells each what became of it; what each answers
// ends the check. Several goroutines call it at once.
func (p *Pages) Check(ctx context.Context, each func(i int, err error) error) error {
	return spread(ctx, p.Len(), func(i int, buf []byte) error {
		_, err := p.Chunk(i, buf)
		return each(i, err)
	})
}

// inARow is how many chunks a worker takes at a time at most. Neighbours are mostly
// pages of neighbours in memory: two workers that fill them wait for the lock of one
// page table.
const inARow = 16

// spread calls f for each of n chunks, by several workers that each have a buffer
// of their own. The first error ends it.
func spread(ctx context.Context, n int, f func(i int, buf []byte) error) error {
	const turns = 4 // of each worker, so that they end at about the same time
	group, ctx := errgroup.WithContext(ctx)
	row := min(max(n/(workers()*turns), 1), inARow)
	var next atomic.Int64
	for range min(workers(), n) {
		group.Go(func() error {
			buf := make([]byte, ChunkSize)
			for {
				end := int(next.Add(int64(row)))
				first := end - row
				if first >= n {
					return nil
				}
				for i := first; i < min(end, n); i++ {
					if ctx.Err() != nil {
						return context.Cause(ctx)
					}
					if err := f(i, buf); err != nil {
						return err
					}
				}
			}
		})
	}
	return group.Wait()
}
