package blob

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/stasis-cr/stasis/cr/errs"
)

// The file header, little-endian as everything in the file:
//
//	 0  8  magic     89 'S' 'T' 'A' 'S' 'I' 'S' 0a; a copy that was taken for text is mangled
//	 8  2  major     a reader refuses another major
//	10  2  minor     a reader accepts any
//	12  4  incompat  feature bits; a reader refuses one it does not know
//	16  4  arch      ELF e_machine of the tasks
//	20  8  reserved  zero; a reader refuses anything else
//	28  4  crc       CRC-32C of bytes 0 to 28
const (
	headerSize = 32
	magic      = "\x89STASIS\n"

	// Major and Minor are the version that Write writes.
	Major = 1
	Minor = 2

	knownIncompat = 0 // feature bits that this package understands

	archX8664 = 62 // EM_X86_64
)

func crc32c(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

func appendHeader(b []byte) []byte {
	start := len(b)
	b = append(b, magic...)
	b = binary.LittleEndian.AppendUint16(b, Major)
	b = binary.LittleEndian.AppendUint16(b, Minor)
	b = binary.LittleEndian.AppendUint32(b, knownIncompat)
	b = binary.LittleEndian.AppendUint32(b, archX8664)
	b = binary.LittleEndian.AppendUint64(b, 0)
	return binary.LittleEndian.AppendUint32(b, crc32c(b[start:]))
}

// checkHeader tells a stranger's file, a damaged one and one of another version
// apart, in that order.
func checkHeader(b []byte) error {
	le := binary.LittleEndian
	if len(b) < headerSize || string(b[:8]) != magic {
		return errs.ErrNotImage
	}
	if want, got := le.Uint32(b[28:]), crc32c(b[:28]); want != got {
		return fmt.Errorf("header: checksum %08x, want %08x: %w", got, want, errs.ErrCorrupt)
	}
	if major := le.Uint16(b[8:]); major != Major {
		return fmt.Errorf("format %d.%d: %w", major, le.Uint16(b[10:]), errs.ErrVersion)
	}
	if bits := le.Uint32(b[12:]) &^ knownIncompat; bits != 0 {
		return fmt.Errorf("unknown features %#x: %w", bits, errs.ErrVersion)
	}
	if arch := le.Uint32(b[16:]); arch != archX8664 {
		return fmt.Errorf("tasks of architecture %d: %w", arch, errs.ErrVersion)
	}
	if r := le.Uint64(b[20:]); r != 0 {
		return fmt.Errorf("reserved field is %#x: %w", r, errs.ErrVersion)
	}
	return nil
}
