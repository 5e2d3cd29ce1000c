package procfs

import (
	"slices"
	"strings"
	"testing"
)

const auxvText = "\x21\x00\x00\x00\x00\x00\x00\x00\x00\xf0\x12\x34\xfe\x7f\x00\x00" +
	"\x03\x00\x00\x00\x00\x00\x00\x00\x40\x00\x40\x00\x00\x00\x00\x00" + "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

func TestParseAuxv(t *testing.T) {
	checkParse(t, ParseAuxv, []parseCase[[]Aux]{
		{"two", auxvText, []Aux{{AuxVDSO, 0x7ffe3412f000}, {AuxPhdr, 0x400040}}},
		{"padded", auxvText + strings.Repeat("\x00", 16), []Aux{{AuxVDSO, 0x7ffe3412f000}, {AuxPhdr, 0x400040}}},
		{"zombie", "", nil},
	})
	checkRefused(t, ParseAuxv, "x", auxvText[:16], auxvText[:40], strings.Repeat("x", auxvMost+1))
}

func TestReadAuxv(t *testing.T) {
	a, err := ReadAuxv(linux(t))
	if err != nil || !slices.ContainsFunc(a, func(x Aux) bool { return x.Type == AuxPhdr && x.Value != 0 }) {
		t.Errorf("auxiliary vector of this process: %v, %v", a, err)
	}
}

func FuzzParseAuxv(f *testing.F) { fuzz(f, ParseAuxv, auxvText) }
