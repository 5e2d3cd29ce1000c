package procfs

import (
	"encoding/binary"
	"fmt"
	"io"
	"strconv"
)

// Aux is one entry of the auxiliary vector (getauxval(3)).
type Aux struct{ Type, Value uint64 }

// Types of entries that a checkpoint looks at.
const (
	AuxNull = 0
	AuxPhdr = 3
	AuxBase = 7
	AuxVDSO = 33 // AT_SYSINFO_EHDR: where the vdso was mapped
)

// auxvMost bounds the vector: the kernel keeps at most 80 words of it.
const auxvMost = 4096

// ParseAuxv parses /proc/PID/auxv of a 64-bit little-endian task, without the
// AT_NULL at its end.
func ParseAuxv(r io.Reader) ([]Aux, error) {
	b, err := readAll(r, auxvMost)
	if err != nil {
		return nil, err
	}
	var out []Aux
	for ; len(b) >= 16; b = b[16:] {
		a := Aux{binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])}
		if a.Type == AuxNull {
			return out, nil
		}
		out = append(out, a)
	}
	if len(out) > 0 || len(b) > 0 {
		return nil, fmt.Errorf("auxiliary vector without end: %w", ErrFormat)
	}
	return nil, nil
}

// Auxv reads the auxiliary vector of a process; a zombie has none.
func (root FS) Auxv(pid int) ([]Aux, error) {
	return read(root, ParseAuxv, strconv.Itoa(pid), "auxv")
}

// ReadAuxv reads /proc/PID/auxv.
func ReadAuxv(pid int) ([]Aux, error) { return Proc.Auxv(pid) }
