package blob

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/stasis-cr/stasis/cr/errs"
)

// The header of a section, before its body:
//
//	 0  4  tag    four upper case letters or blanks
//	 4  2  rev    revision of the body's message
//	 6  2  flags  bit 0: a reader that does not know the tag must refuse the file
//	 8  8  length of the body, bytes
//	16  4  crc    CRC-32C of the body
//	20  4  crc    CRC-32C of bytes 0 to 20
const (
	sectionHeaderSize = 24

	mustUnderstand = 1 << 0
	knownFlags     = mustUnderstand
)

// The end is a section of tag END whose body is no message:
//
//	0  4  sections before it
//	4  4  crc  CRC-32C of all their headers, in order
const (
	endTag  = "END "
	endSize = 8
)

// maxBody bounds one record, in bytes. The largest known are the page lists of
// address spaces: some 12 bytes for each run of pages.
const maxBody = 1 << 28

// maxState bounds the file, in bytes.
const maxState = 1 << 29

type section struct {
	tag    string
	rev    uint16
	flags  uint16
	length uint64
	crc    uint32
}

func (s section) append(b []byte) []byte {
	start := len(b)
	b = append(b, s.tag...)
	b = binary.LittleEndian.AppendUint16(b, s.rev)
	b = binary.LittleEndian.AppendUint16(b, s.flags)
	b = binary.LittleEndian.AppendUint64(b, s.length)
	b = binary.LittleEndian.AppendUint32(b, s.crc)
	return binary.LittleEndian.AppendUint32(b, crc32c(b[start:]))
}

func parseSection(b []byte) (section, error) {
	le := binary.LittleEndian
	if want, got := le.Uint32(b[20:]), crc32c(b[:20]); want != got {
		return section{}, fmt.Errorf("section header: checksum %08x, want %08x: %w", got, want, errs.ErrCorrupt)
	}
	s := section{
		tag: string(b[:4]), rev: le.Uint16(b[4:]), flags: le.Uint16(b[6:]),
		length: le.Uint64(b[8:]), crc: le.Uint32(b[16:]),
	}
	if s.flags&^knownFlags != 0 {
		return section{}, fmt.Errorf("section %q: unknown flags %#x: %w", s.tag, s.flags, errs.ErrVersion)
	}
	return s, nil
}

// end is what the END section says.
type end struct {
	sections uint32
	crc      uint32
}

// add counts one section by its header.
func (e *end) add(header []byte) {
	e.sections++
	e.crc = crc32.Update(e.crc, crc32.MakeTable(crc32.Castagnoli), header)
}

func (e end) append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, e.sections)
	return binary.LittleEndian.AppendUint32(b, e.crc)
}

func parseEnd(b []byte) end {
	return end{binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:])}
}
