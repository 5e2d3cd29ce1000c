package mem

import (
	"fmt"
	"hash/crc32"
	"os"
	"path"
	"sync"

	"google.golang.org/protobuf/proto"

	"github.com/stasis-cr/stasis/cr/blob"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// StoreOptions say how a store is written.
type StoreOptions struct {
	Codec  blob.Chunk_Codec // of chunks that shrink by it
	Parent *Parent          // an earlier checkpoint whose chunks may be named; nil: none
}

// Parent is an earlier checkpoint as the store of a later one sees it: what is
// chunk i there is chunk i here.
type Parent struct {
	stores []*blob.ParentStore
	chunks []*blob.Chunk
}

// NewParent makes one of the earlier checkpoint's index. dir is its directory,
// from that of the later one, and digest that of its state.img.
func NewParent(index *blob.PageStore, dir string, digest []byte) *Parent {
	p := &Parent{stores: []*blob.ParentStore{{Dir: dir, State: digest, File: index.GetFile(), Size: index.GetSize()}}}
	for _, s := range index.GetParents() {
		p.stores = append(p.stores, &blob.ParentStore{Dir: path.Join(dir, s.Dir), State: s.State, File: s.File, Size: s.Size})
	}
	for _, c := range index.GetChunks() {
		c = proto.CloneOf(c)
		c.Store++
		p.chunks = append(p.chunks, c)
	}
	return p
}

// Store writes the page store: chunks back to back in one file, in the order in
// which workers finish them. It is safe for concurrent use.
type Store struct {
	f    *os.File
	enc  *encoder
	pool pool // of the savers

	twins *twins // pages that are stored
	worth worth
	back  *Pages    // what is stored, to compare with; without an index
	backs sync.Pool // *readBack

	mu     sync.Mutex
	size   uint64
	chunks []*blob.Chunk

	parents []*blob.ParentStore
}

// NewStore writes to f, which is open for reading, too, and stays the caller's.
func NewStore(f *os.File, o StoreOptions) *Store {
	s := &Store{f: f, enc: newEncoder(o.Codec), twins: newTwins(), back: OpenPages(nil, f)}
	if o.Parent != nil {
		s.chunks, s.parents = o.Parent.chunks, o.Parent.stores
	}
	return s
}

// Put appends one chunk of pages, compressed if it shrinks, and returns its
// index. It does not keep raw.
func (s *Store) Put(raw []byte) (uint32, error) {
	i := s.reserve()
	return i, s.put(i, raw)
}

// PutRaw is Put for who can't wait for a compressor.
func (s *Store) PutRaw(raw []byte) (uint32, error) {
	i := s.reserve()
	return i, s.putRaw(i, raw)
}

func (s *Store) putRaw(i uint32, raw []byte) error {
	return s.write(i, raw, len(raw), blob.Chunk_RAW)
}

// reserve gives out the index of a chunk that is going to be put. Until then
// the store's record is not valid.
func (s *Store) reserve() uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.chunks = append(s.chunks, &blob.Chunk{})
	return uint32(len(s.chunks) - 1)
}

// put compresses a chunk and appends it.
func (s *Store) put(i uint32, raw []byte) error {
	b := s.enc.scratch.Get().(*[]byte) //nolint:forcetypeassert,errcheck // it holds nothing else
	defer s.enc.scratch.Put(b)
	stored, codec, err := s.enc.encode(raw, *b)
	if err != nil {
		return fmt.Errorf("page store: chunk %d: %w", i, err)
	}
	return s.write(i, stored, len(raw), codec)
}

// write appends the stored bytes of a chunk.
func (s *Store) write(i uint32, stored []byte, raw int, codec blob.Chunk_Codec) error {
	c := &blob.Chunk{Stored: uint32(len(stored)), Raw: uint32(raw), Codec: codec, Crc: crc32.Checksum(stored, castagnoli)}
	s.mu.Lock()
	c.Offset = s.size
	s.size += uint64(len(stored))
	s.mu.Unlock()
	if _, err := s.f.WriteAt(stored, int64(c.Offset)); err != nil {
		return fmt.Errorf("page store: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.chunks[i] = c // not before it can be read
	return nil
}

// chunk is what is known of a chunk: nothing if it is not written yet.
func (s *Store) chunk(i uint32) *blob.Chunk {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.chunks[i]
}

// lend lends a reader of what is stored.
func (s *Store) lend() *readBack {
	if b, ok := s.backs.Get().(*readBack); ok {
		return b
	}
	return newReadBack(s)
}

func (s *Store) giveBack(b *readBack) { s.backs.Put(b) }

// Size is what the store holds so far, in bytes.
func (s *Store) Size() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return int64(s.size)
}

// Index returns the store's record; name is its file's name in the image
// directory. Precondition: nothing is being put.
func (s *Store) Index(name string) *blob.PageStore {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &blob.PageStore{File: name, Size: s.size, Chunks: s.chunks, Parents: s.parents}
}
