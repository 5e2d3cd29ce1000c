package mem

import (
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"sync"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/errs"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Store writes the page store: chunks back to back in one file, in the order in
// which workers finish them. It is safe for concurrent use.
type Store struct {
	f *os.File

	mu     sync.Mutex
	size   uint64
	chunks []*blob.Chunk
}

// NewStore writes to f, which stays the caller's.
func NewStore(f *os.File) *Store { return &Store{f: f} }

// Put appends one chunk of pages and returns its index. It does not keep raw.
func (s *Store) Put(raw []byte) (uint32, error) {
	c := &blob.Chunk{
		Stored: uint32(len(raw)), Raw: uint32(len(raw)),
		Codec: blob.Chunk_RAW, Crc: crc32.Checksum(raw, castagnoli),
	}
	s.mu.Lock()
	c.Offset = s.size
	s.size += uint64(len(raw))
	index := uint32(len(s.chunks))
	s.chunks = append(s.chunks, c)
	s.mu.Unlock()
	if _, err := s.f.WriteAt(raw, int64(c.Offset)); err != nil {
		return 0, fmt.Errorf("page store: %w", err)
	}
	return index, nil
}

// Size is what the store holds so far, in bytes.
func (s *Store) Size() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return int64(s.size)
}

// Index returns the store's record; name is its file's name in the image
// directory.
func (s *Store) Index(name string) *blob.PageStore {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &blob.PageStore{File: name, Size: s.size, Chunks: s.chunks}
}

// readChunk reads chunk i into buf, which holds ChunkSize bytes, and checks it.
// The bounds in c were checked when the image was validated, but for the size of
// the buffer.
func readChunk(f io.ReaderAt, i int, c *blob.Chunk, buf []byte) ([]byte, error) {
	if int(c.Raw) > len(buf) || c.Codec != blob.Chunk_RAW || c.Stored != c.Raw {
		return nil, fmt.Errorf("chunk %d: codec %d of %d bytes: %w", i, c.Codec, c.Raw, errs.ErrVersion)
	}
	b := buf[:c.Raw]
	if n, err := f.ReadAt(b, int64(c.Offset)); n < len(b) {
		return nil, fmt.Errorf("chunk %d at %d: %w: %w", i, c.Offset, errs.ErrCorrupt, err)
	}
	if got := crc32.Checksum(b, castagnoli); got != c.Crc {
		return nil, fmt.Errorf("chunk %d at %d: checksum %08x, want %08x: %w", i, c.Offset, got, c.Crc, errs.ErrCorrupt)
	}
	return b, nil
}
