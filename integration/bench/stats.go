package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// frozenIn reads the time a container stood still from a stats-dump file, which
// both engines write: two magic words, a length, and a message whose field 1 is
// the dump, whose field 2 is the time in microseconds (CRIU's
// images/stats.proto).
func frozenIn(path string) (time.Duration, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	d, err := parseFrozen(b)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	return d, nil
}

var errStats = errors.New("not a stats file")

func parseFrozen(b []byte) (time.Duration, error) {
	if len(b) < 12 || uint64(binary.LittleEndian.Uint32(b[8:])) > uint64(len(b)-12) {
		return 0, errStats
	}
	entry := b[12 : 12+binary.LittleEndian.Uint32(b[8:])]
	dump, _, err := find(entry, 1)
	if err != nil {
		return 0, err
	}
	_, us, err := find(dump, 2)
	return time.Duration(us) * time.Microsecond, err
}

// find looks for a field of a message: its bytes or its number, as it may be.
func find(msg []byte, want protowire.Number) ([]byte, uint64, error) {
	for len(msg) > 0 {
		num, typ, n := protowire.ConsumeTag(msg)
		if n < 0 {
			return nil, 0, errStats
		}
		msg = msg[n:]
		size := protowire.ConsumeFieldValue(num, typ, msg)
		switch {
		case size < 0:
			return nil, 0, errStats
		case num == want && typ == protowire.BytesType:
			v, _ := protowire.ConsumeBytes(msg)
			return v, 0, nil
		case num == want && typ == protowire.VarintType:
			v, _ := protowire.ConsumeVarint(msg)
			return nil, v, nil
		}
		msg = msg[size:]
	}
	return nil, 0, errStats
}
