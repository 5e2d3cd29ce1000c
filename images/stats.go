package images

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// The first eight bytes of a statistics file in CRIU's format, little-endian;
// the length of one protobuf message follows, then the message.
const (
	serviceMagic = 0x55105940
	statsMagic   = 0x57093306
)

// DumpStats are the figures of one checkpoint.
type DumpStats struct {
	Frozen time.Duration // how long the container stood still
	Total  time.Duration
	Pages  uint64 // pages of 4 KiB written
}

// WriteStats writes stats-dump to the directory path, in CRIU's format: podman
// and CRI-O read it.
func WriteStats(path string, s DumpStats) (err error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		return fmt.Errorf("work directory: %w", err)
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	return put(root, "stats-dump", s.encode())
}

// encode writes every field that the format requires. Times are microseconds:
// freezing 1, frozen 2, copying memory 3, writing it 4; then pages scanned 5,
// skipped 6, written 7 and left for later 9. What the engine does not time apart
// is 0.
func (s DumpStats) encode() []byte {
	var dump []byte
	field := func(num protowire.Number, v uint64) {
		dump = protowire.AppendTag(dump, num, protowire.VarintType)
		dump = protowire.AppendVarint(dump, v)
	}
	field(1, 0)
	field(2, micros(s.Frozen))
	field(3, 0)
	field(4, micros(s.Total))
	field(5, s.Pages)
	field(6, 0)
	field(7, s.Pages)
	field(9, 0)
	entry := protowire.AppendTag(nil, 1, protowire.BytesType)
	entry = protowire.AppendBytes(entry, dump)

	b := binary.LittleEndian.AppendUint32(nil, serviceMagic)
	b = binary.LittleEndian.AppendUint32(b, statsMagic)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(entry)))
	return append(b, entry...)
}

// micros is d in microseconds, as far as the field's 32 bits go.
func micros(d time.Duration) uint64 {
	return uint64(min(max(d.Microseconds(), 0), 1<<32-1))
}
