package mem

import (
	"fmt"
	"sync"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/errs"
)

// ParseCodec is the codec of a name that people use: none, s2 or zstd.
func ParseCodec(name string) (blob.Chunk_Codec, error) {
	switch name {
	case "none":
		return blob.Chunk_RAW, nil
	case "s2":
		return blob.Chunk_S2, nil
	case "zstd":
		return blob.Chunk_ZSTD, nil
	}
	return 0, fmt.Errorf("compression %q: want none, s2 or zstd: %w", name, errs.ErrUnsupported)
}

// worthwhile says whether a chunk of raw bytes is stored compressed: what saves
// less than a sixteenth does not pay for being unpacked.
func worthwhile(stored, raw int) bool { return stored < raw/16*15 }

// encoder compresses chunks. It is safe for concurrent use.
type encoder struct {
	codec   blob.Chunk_Codec
	zstd    func() (*zstd.Encoder, error)
	scratch sync.Pool // *[]byte
}

func newEncoder(codec blob.Chunk_Codec) *encoder {
	return &encoder{codec: codec, zstd: sync.OnceValues(newZstdEncoder), scratch: newScratch()}
}

// newScratch lends buffers that hold a compressed chunk, even one that grew by it.
func newScratch() sync.Pool {
	return sync.Pool{New: func() any {
		b := make([]byte, ChunkSize+ChunkSize/16)
		return &b
	}}
}

// newZstdEncoder has one encoder for each worker. Chunks have checksums of their
// own, and no window is larger than a chunk.
func newZstdEncoder() (*zstd.Encoder, error) {
	return zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(workers()),
		zstd.WithWindowSize(ChunkSize), zstd.WithEncoderCRC(false))
}

// encode compresses raw into b, if that pays.
func (e *encoder) encode(raw, b []byte) ([]byte, blob.Chunk_Codec, error) {
	var out []byte
	if e.codec != blob.Chunk_RAW && hopeless(raw, b) {
		return raw, blob.Chunk_RAW, nil
	}
	switch e.codec {
	case blob.Chunk_RAW:
		return raw, blob.Chunk_RAW, nil
	case blob.Chunk_S2:
		out = s2.Encode(b[:cap(b)], raw)
	case blob.Chunk_ZSTD:
		z, err := e.zstd()
		if err != nil {
			return nil, 0, fmt.Errorf("zstd: %w", err)
		}
		out = z.EncodeAll(raw, b[:0])
	default:
		return nil, 0, fmt.Errorf("codec %d: %w", e.codec, errs.ErrUnsupported)
	}
	if !worthwhile(len(out), len(raw)) {
		return raw, blob.Chunk_RAW, nil
	}
	return out, e.codec, nil
}

// sampled is how many pages there are for each that hopeless looks at.
const sampled = 16

// hopeless says that none of a sample of pages shrinks: then no codec will make
// much of a chunk, and to hear that from it takes as long as to read the chunk.
func hopeless(raw, scratch []byte) bool {
	in, out := 0, 0
	for at := 0; at+PageSize <= len(raw); at += sampled * PageSize {
		in += PageSize
		out += len(s2.Encode(scratch[:cap(scratch)], raw[at:at+PageSize]))
	}
	return in >= PageSize*chunkPages/sampled && out > in-in/64
}

// newZstdDecoder decodes as many chunks at once as are asked for, each only into
// the memory that it is given.
func newZstdDecoder() (*zstd.Decoder, error) {
	return zstd.NewReader(nil, zstd.WithDecoderConcurrency(workers()), zstd.WithDecoderMaxMemory(ChunkSize),
		zstd.WithDecoderMaxWindow(ChunkSize), zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderLowmem(true))
}

// decodeS2 decodes stored into all of raw. The length is looked at first: the
// decoder would allocate what the block promises.
func decodeS2(stored, raw []byte) error {
	n, err := s2.DecodedLen(stored)
	if err == nil && n != len(raw) {
		err = fmt.Errorf("%d bytes of pages", n)
	}
	if err != nil {
		return err
	}
	_, err = s2.Decode(raw, stored)
	return err
}

// decodeZstd decodes stored, one frame that says its size, into all of raw.
func decodeZstd(z *zstd.Decoder, stored, raw []byte) error {
	var h zstd.Header
	if err := h.Decode(stored); err != nil {
		return err
	}
	if !h.HasFCS || h.FrameContentSize != uint64(len(raw)) || h.Skippable || h.DictionaryID != 0 {
		return fmt.Errorf("a frame of %d bytes of pages", h.FrameContentSize)
	}
	out, err := z.DecodeAll(stored, raw[:0:len(raw)])
	if err == nil && len(out) != len(raw) {
		err = fmt.Errorf("%d bytes of pages", len(out))
	}
	return err
}
