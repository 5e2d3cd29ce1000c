package mem

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"slices"
	"sync"
	"testing"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"google.golang.org/protobuf/proto"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/errs"
)

func codecs() []blob.Chunk_Codec {
	return []blob.Chunk_Codec{blob.Chunk_RAW, blob.Chunk_S2, blob.Chunk_ZSTD}
}

// prose is n bytes that shrink, and no page of which is like another.
func prose(seed uint64, n int) []byte {
	var song bytes.Buffer
	for i := seed; song.Len() < PageSize; i++ {
		fmt.Fprintf(&song, "%d bottles of beer on the wall, %x;", i, i*i*2654435761)
	}
	b := make([]byte, n)
	for at := 0; at < n; at += PageSize {
		copy(b[at:], song.Bytes())
		for line := at; line+8 <= min(n, at+PageSize); line += 64 {
			binary.LittleEndian.PutUint64(b[line:], seed<<40|uint64(at))
		}
	}
	return b
}

// chunks are what a store may be given, and whether it shrinks.
func chunks() map[string]struct {
	raw     []byte
	shrinks bool
} {
	return map[string]struct {
		raw     []byte
		shrinks bool
	}{
		"one page of prose":   {prose(1, PageSize), true},
		"prose":               {prose(2, ChunkSize), true},
		"one page of noise":   {noise(1, PageSize), false},
		"noise":               {noise(2, ChunkSize), false},
		"zeros":               {make([]byte, ChunkSize), true},
		"a bit of both":       {append(noise(3, 20*PageSize), prose(3, 20*PageSize)...), true},
		"hardly any zeros":    {append(noise(4, 63*PageSize), make([]byte, PageSize)...), false},
		"a sixteenth at most": {append(noise(5, 61*PageSize), make([]byte, 3*PageSize)...), false},
	}
}

// TestStore puts chunks of all sorts by all codecs, and reads them back.
func TestStore(t *testing.T) {
	for _, codec := range codecs() {
		t.Run(codec.String(), func(t *testing.T) {
			f := tempFile(t)
			s := NewStore(f, StoreOptions{Codec: codec})
			want := map[uint32][]byte{}
			for name, c := range chunks() {
				raw := slices.Clone(c.raw)
				i, err := s.Put(raw)
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				clear(raw) // it must not be kept
				want[i] = c.raw
				got := s.Index("p").Chunks[i]
				if shrunk := got.Codec != blob.Chunk_RAW; shrunk != (c.shrinks && codec != blob.Chunk_RAW) {
					t.Errorf("%s: %d bytes stored as %d by %s", name, got.Raw, got.Stored, got.Codec)
				}
			}
			i, err := s.PutRaw(prose(9, PageSize))
			if err != nil || s.Index("p").Chunks[i].Codec != blob.Chunk_RAW {
				t.Errorf("put raw: %v", err)
			}
			want[i] = prose(9, PageSize)
			isStore(t, f, s, want)
		})
	}
}

// isStore compares a store with what was put there.
func isStore(t *testing.T, f *os.File, s *Store, want map[uint32][]byte) {
	t.Helper()
	index := s.Index("pages.img")
	if err := (&blob.Image{Pages: index}).Validate(); err == nil || !bytes.Contains([]byte(err.Error()), []byte("host")) {
		t.Fatal(err)
	}
	if st, err := f.Stat(); err != nil || st.Size() != s.Size() || index.Size != uint64(s.Size()) || len(index.Chunks) != len(want) {
		t.Fatalf("%d chunks, %d bytes, index of %d, file of %d: %v", len(index.Chunks), s.Size(), index.Size, st.Size(), err)
	}
	p := OpenPages(index, f)
	if p.Len() != len(want) {
		t.Errorf("%d chunks, want %d", p.Len(), len(want))
	}
	var all sync.WaitGroup
	for i, raw := range want { // all at once, each with a buffer of its own
		all.Go(func() {
			if got, err := p.Chunk(int(i), make([]byte, ChunkSize)); err != nil || !bytes.Equal(got, raw) {
				t.Errorf("chunk %d: %v", i, err)
			}
		})
	}
	all.Wait()
}

func TestParseCodec(t *testing.T) {
	for name, want := range map[string]blob.Chunk_Codec{"none": blob.Chunk_RAW, "s2": blob.Chunk_S2, "zstd": blob.Chunk_ZSTD} {
		if got, err := ParseCodec(name); err != nil || got != want {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	for _, name := range []string{"", "lz4", "S2"} {
		if _, err := ParseCodec(name); !errors.Is(err, errs.ErrUnsupported) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if _, err := NewStore(tempFile(t), StoreOptions{Codec: 7}).Put(noise(1, PageSize)); !errors.Is(err, errs.ErrUnsupported) {
		t.Errorf("codec 7: %v", err)
	}
}

// one is a store of one chunk, with a right checksum.
func one(stored []byte, raw uint32, codec blob.Chunk_Codec) *blob.PageStore {
	return &blob.PageStore{Size: uint64(len(stored)), Chunks: []*blob.Chunk{{
		Stored: uint32(len(stored)), Raw: raw, Codec: codec, Crc: crc32.Checksum(stored, castagnoli),
	}}}
}

// TestChunkRefuses: no byte that was changed, and none that is missing, goes by.
func TestChunkRefuses(t *testing.T) {
	buf := make([]byte, ChunkSize)
	for _, codec := range codecs() {
		f := tempFile(t)
		s := NewStore(f, StoreOptions{Codec: codec})
		if _, err := s.Put(prose(9, 2*PageSize)); err != nil {
			t.Fatal(err)
		}
		stored, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		index := s.Index("p")
		for i := range stored {
			bad := slices.Clone(stored)
			bad[i] ^= 1 << (i % 8)
			if _, err := OpenPages(index, bytes.NewReader(bad)).Chunk(0, buf); !errors.Is(err, errs.ErrCorrupt) {
				t.Fatalf("%s: byte %d changed: %v", codec, i, err)
			}
		}
		for _, n := range []int{0, 1, len(stored) - 1} {
			if _, err := OpenPages(index, bytes.NewReader(stored[:n])).Chunk(0, buf); !errors.Is(err, errs.ErrCorrupt) {
				t.Errorf("%s: cut to %d bytes: %v", codec, n, err)
			}
		}
		for name, change := range map[string]func(*blob.Chunk){
			"an unknown codec": func(c *blob.Chunk) { c.Codec = 7 },
			"more than raw":    func(c *blob.Chunk) { c.Stored = c.Raw + 1 },
			"too large":        func(c *blob.Chunk) { c.Raw, c.Stored = ChunkSize+1, ChunkSize+1 },
			"the largest":      func(c *blob.Chunk) { c.Raw, c.Stored = 1<<32-1, 1<<32-1 },
		} {
			c := proto.CloneOf(index.Chunks[0])
			change(c)
			p := OpenPages(&blob.PageStore{Chunks: []*blob.Chunk{c}}, bytes.NewReader(stored))
			if _, err := p.Chunk(0, buf); !errors.Is(err, errs.ErrVersion) {
				t.Errorf("%s: %s: %v", codec, name, err)
			}
		}
		for _, i := range []int{-1, 1, 1 << 40} {
			if _, err := OpenPages(index, f).Chunk(i, buf); !errors.Is(err, errs.ErrCorrupt) {
				t.Errorf("chunk %d: %v", i, err)
			}
		}
	}
}

// frame is zstd's encoding of raw, which says its size or not.
func frame(t testing.TB, raw []byte, size bool) []byte {
	t.Helper()
	var b bytes.Buffer
	z, err := zstd.NewWriter(&b)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	if size {
		return z.EncodeAll(raw, nil)
	}
	for piece := max(1000, len(raw)/8); len(raw) > 0; { // flushed: it can't know the end
		n := min(len(raw), piece)
		if _, err := z.Write(raw[:n]); err != nil {
			t.Fatal(err)
		}
		if err := z.Flush(); err != nil {
			t.Fatal(err)
		}
		raw = raw[n:]
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestChunkHostile: behind a right checksum, what is stored may be anything.
func TestChunkHostile(t *testing.T) {
	text := prose(1, 4*PageSize)
	bomb := make([]byte, 64<<20)
	for name, c := range map[string]struct {
		codec  blob.Chunk_Codec
		stored []byte
		ok     bool
	}{
		"s2":                        {blob.Chunk_S2, s2.Encode(nil, text), true},
		"s2 of fewer pages":         {blob.Chunk_S2, s2.Encode(nil, text[PageSize:]), false},
		"s2 of more":                {blob.Chunk_S2, s2.Encode(nil, bomb), false},
		"s2 that promises much":     {blob.Chunk_S2, []byte{0xff, 0xff, 0xff, 0xff, 0x0f, 0}, false},
		"s2 that promises and ends": {blob.Chunk_S2, s2.Encode(nil, text)[:100], false},
		"s2 of zstd":                {blob.Chunk_S2, frame(t, text, true), false},
		"zstd":                      {blob.Chunk_ZSTD, frame(t, text, true), true},
		"zstd without a size":       {blob.Chunk_ZSTD, frame(t, text, false), false},
		"zstd of fewer pages":       {blob.Chunk_ZSTD, frame(t, text[PageSize:], true), false},
		"zstd of more":              {blob.Chunk_ZSTD, frame(t, bomb, true), false},
		"zstd, cut":                 {blob.Chunk_ZSTD, frame(t, text, true)[:100], false},
		"zstd twice":                {blob.Chunk_ZSTD, append(frame(t, text, true), frame(t, text, true)...), false},
		"zstd, then a bomb":         {blob.Chunk_ZSTD, append(frame(t, text, true), frame(t, bomb, false)...), false},
		"zstd behind a skipped one": {blob.Chunk_ZSTD, append([]byte{0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0}, frame(t, text, true)...), false},
		"zstd of nothing":           {blob.Chunk_ZSTD, []byte{1}, false},
	} {
		t.Run(name, func(t *testing.T) {
			buf := make([]byte, ChunkSize)
			p := OpenPages(one(c.stored, uint32(len(text)), c.codec), bytes.NewReader(c.stored))
			raw, err := p.Chunk(0, buf)
			switch {
			case c.ok && (err != nil || !bytes.Equal(raw, text)):
				t.Errorf("%d bytes, %v", len(raw), err)
			case !c.ok && !errors.Is(err, errs.ErrCorrupt):
				t.Errorf("not refused: %v", err)
			}
			if !bytes.Equal(buf[len(text):], make([]byte, len(buf)-len(text))) {
				t.Error("something was written behind the chunk's own pages")
			}
		})
	}
}

// FuzzChunk reads stores of one chunk that may be anything, behind a right
// checksum and behind one that may be wrong.
func FuzzChunk(f *testing.F) {
	text := prose(1, 300)
	f.Add(text, uint32(len(text)), int32(0), uint32(0))
	f.Add(s2.Encode(nil, text), uint32(len(text)), int32(1), uint32(0))
	f.Add(frame(f, text, true), uint32(len(text)), int32(2), uint32(0))
	f.Add(frame(f, text, false), uint32(len(text)), int32(2), uint32(1))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0x0f}, uint32(1<<32-1), int32(1), uint32(0))
	buf := make([]byte, ChunkSize)
	f.Fuzz(func(t *testing.T, stored []byte, raw uint32, codec int32, wrong uint32) {
		index := one(stored, raw, blob.Chunk_Codec(codec))
		index.Chunks[0].Crc ^= wrong
		b, err := OpenPages(index, bytes.NewReader(stored)).Chunk(0, buf)
		if err == nil && (wrong != 0 || len(b) != int(raw)) {
			t.Fatalf("%d bytes of %d, checksum wrong by %x", len(b), raw, wrong)
		}
		if err != nil && !errors.Is(err, errs.ErrCorrupt) && !errors.Is(err, errs.ErrVersion) {
			t.Fatalf("error without a class: %v", err)
		}
	})
}

// BenchmarkPut writes one chunk over and over to the same place of a file in the
// system's temporary folder.
func BenchmarkPut(b *testing.B) { benchmark(b, false) }

// BenchmarkChunk is the way back.
func BenchmarkChunk(b *testing.B) { benchmark(b, true) }

func benchmark(b *testing.B, read bool) {
	b.Helper()
	for _, codec := range codecs() {
		for name, raw := range map[string][]byte{"prose": prose(1, ChunkSize), "noise": noise(1, ChunkSize)} {
			b.Run(codec.String()+"/"+name, func(b *testing.B) {
				f := tempFile(b)
				s := NewStore(f, StoreOptions{Codec: codec})
				if _, err := s.Put(raw); err != nil {
					b.Fatal(err)
				}
				p, buf := OpenPages(s.Index("p"), f), make([]byte, ChunkSize)
				b.SetBytes(ChunkSize)
				b.ReportMetric(float64(s.Size())/ChunkSize, "stored/raw")
				for b.Loop() {
					var err error
					if read {
						_, err = p.Chunk(0, buf)
					} else {
						s.size = 0 // the same place again, or the disk would fill
						_, err = s.Put(raw)
					}
					if err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// broken is a store that ends with an error, after some bytes.
type broken struct {
	n   int
	err error
}

func (b broken) ReadAt([]byte, int64) (int, error) { return b.n, b.err }

// TestChunkOutOfReach: a chunk that can't be read is an error, and damaged only if
// the store ends before it does.
func TestChunkOutOfReach(t *testing.T) {
	cut := errors.New("connection cut")
	for _, tt := range []struct {
		store   broken
		damaged bool
	}{{broken{0, cut}, false}, {broken{100, cut}, false}, {broken{100, io.EOF}, true}, {broken{0, nil}, true}} {
		p := OpenPages(one(make([]byte, PageSize), PageSize, blob.Chunk_RAW), tt.store)
		_, err := p.Chunk(0, make([]byte, ChunkSize))
		if err == nil || errors.Is(err, errs.ErrCorrupt) != tt.damaged || !tt.damaged && !errors.Is(err, cut) {
			t.Errorf("%+v: %v", tt.store, err)
		}
	}
}
