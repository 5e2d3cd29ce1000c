package mem

import (
	"cmp"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path"
	"sync"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/stasis-cr/stasis/cr/blob"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// StoreOptions say how a store is written.
type StoreOptions struct {
	Codec  blob.Chunk_Codec // of chunks that shrink by it
	Parent *Parent          // an earlier checkpoint whose chunks may be named; nil: none
	// More are further files to spread a large store over, as f of NewStore is one.
	More []*os.File
}

// Files is how many files a large store is spread over.
func Files() int { return workers() }

// spreadFrom is how many bytes a store holds for each file that it is spread over: a
// small one has a single file.
const spreadFrom = 32 << 20

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
	for _, f := range index.GetMore() {
		p.stores = append(p.stores, &blob.ParentStore{Dir: dir, State: digest, File: f.File, Size: f.Size})
	}
	for _, c := range index.GetChunks() {
		c = proto.CloneOf(c)
		c.Store++
		p.chunks = append(p.chunks, c)
	}
	return p
}

// Store writes the page store: chunks back to back, in the order in which workers
// finish them. The kernel lets one write to a file at a time (i_rwsem; mm/shmem.c and
// the file systems take it for all of it), so workers that write at once have files of
// their own. It is safe for concurrent use.
type Store struct {
	enc  *encoder
	pool pool // of the savers

	twins *twins // pages that are stored
	worth worth
	back  *Pages    // what is stored, to compare with; without an index
	backs sync.Pool // *readBack

	mu     sync.Mutex
	size   uint64 // of all files
	files  []*storeFile
	ahead  uint64 // mostAhead, but in tests
	chunks []*blob.Chunk

	parents []*blob.ParentStore
}

// storeFile is one of the files that a store is spread over.
type storeFile struct {
	f       *os.File
	store   uint32 // its number, as chunks say it
	size    uint64
	sent    uint64 // so much of it the disk was asked to take
	writers int    // that are at it
}

// window is what the disk is asked to take at a time.
const window = 8 << 20

// mostAhead is how many bytes may be written that the disk has not been asked to take.
// Up to there a store is written as fast as memory is: a copy that waits for the disk
// takes so long that the container has written much again when it ends.
const mostAhead = 1 << 30

// toDisk has the disk take what was written before the last so many bytes, and waits
// for what it was to take before. Else the kernel lets memory fill with what we write,
// and then makes all who write wait for the disk, the container too, for up to 200 ms
// (mm/page-writeback.c, MAX_PAUSE). mu guards f.
func (f *storeFile) toDisk(mu *sync.Mutex, last uint64) error {
	mu.Lock()
	at := f.sent
	due := f.size >= at+window+last
	if due {
		f.sent += window
	}
	mu.Unlock()
	if !due {
		return nil
	}
	if at >= window {
		const all = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
		if err := unix.SyncFileRange(int(f.f.Fd()), int64(at-window), window, all); err != nil {
			return err
		}
	}
	return unix.SyncFileRange(int(f.f.Fd()), int64(at), window, unix.SYNC_FILE_RANGE_WRITE)
}

// NewStore writes to f, which is open for reading, too, and stays the caller's, as do
// all files in o.
func NewStore(f *os.File, o StoreOptions) *Store {
	s := &Store{enc: newEncoder(o.Codec), twins: newTwins(), ahead: mostAhead}
	if o.Parent != nil {
		s.chunks, s.parents = o.Parent.chunks, o.Parent.stores
	}
	stores := make([]io.ReaderAt, 1+len(s.parents)) // nothing of parents is compared with
	stores[0] = f
	s.files = append(s.files, &storeFile{f: f})
	for _, more := range o.More {
		s.files = append(s.files, &storeFile{f: more, store: uint32(len(stores))})
		stores = append(stores, more)
	}
	s.back = OpenPages(nil, stores...)
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
	if err := s.write(i, stored, len(raw), codec); err != nil {
		return err
	}
	for _, f := range s.files {
		if err := f.toDisk(&s.mu, s.ahead/uint64(len(s.files))); err != nil {
			return fmt.Errorf("page store: %w", err)
		}
	}
	return nil
}

// write appends the stored bytes of a chunk.
func (s *Store) write(i uint32, stored []byte, raw int, codec blob.Chunk_Codec) error {
	c := &blob.Chunk{Stored: uint32(len(stored)), Raw: uint32(raw), Codec: codec, Crc: crc32.Checksum(stored, castagnoli)}
	to := s.place(c)
	_, err := to.f.WriteAt(stored, int64(c.Offset))
	s.mu.Lock()
	defer s.mu.Unlock()
	to.writers--
	if err != nil {
		return fmt.Errorf("page store: %w", err)
	}
	s.chunks[i] = c // not before it can be read
	return nil
}

// place gives a chunk its place: at the end of the file that fewest write to, and of
// those of the smallest.
func (s *Store) place(c *blob.Chunk) *storeFile {
	s.mu.Lock()
	defer s.mu.Unlock()
	most := min(len(s.files), 1+int(s.size/spreadFrom))
	to := s.files[0]
	for _, f := range s.files[1:most] {
		if cmp.Or(cmp.Compare(f.writers, to.writers), cmp.Compare(f.size, to.size)) < 0 {
			to = f
		}
	}
	to.writers++
	c.Store, c.Offset = to.store, to.size
	to.size += uint64(c.Stored)
	s.size += uint64(c.Stored)
	return to
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

// Index returns the store's record; name is its file's name in the image directory,
// and more are those of the further files, of which only the first ones may be used:
// the record names no others. Precondition: nothing is being put.
func (s *Store) Index(name string, more ...string) *blob.PageStore {
	s.mu.Lock()
	defer s.mu.Unlock()
	index := &blob.PageStore{File: name, Size: s.files[0].size, Chunks: s.chunks, Parents: s.parents}
	for i, f := range s.files[1:] {
		if f.size > 0 { // else those that follow hold nothing either
			index.More = append(index.More, &blob.PageFile{File: more[i], Size: f.size})
		}
	}
	return index
}
