package procfs

import (
	"strings"
	"testing"
)

const unixText = "Num       RefCount Protocol Flags    Type St Inode Path\n" +
	"00000000d7d1614a: 00000003 00000000 00000000 0001 03  1158\n" +
	"00000000543f8ab6: 00000002 00000000 00010000 0005 01 1234567 /run/a b\n" +
	"00000000543f8ab7: 00000002 00000000 00000000 0002 01     7 @x\ny\n\n"

func TestParseUnix(t *testing.T) {
	checkParse(t, ParseUnix, []parseCase[[]UnixSocket]{{"three", unixText, []UnixSocket{
		{3, false, 1, 3, 1158, ""}, {2, true, 5, 1, 1234567, "/run/a b"}, {2, false, 2, 1, 7, "@x\ny\n"},
	}}, {"nothing", "", nil}})
	cut, _, _ := strings.Cut(unixText, "1234567")
	short, _, _ := strings.Cut(unixText, "00000000543f8ab6")
	checkRefused(t, ParseUnix, "x\n", cut, short+"x\n",
		unixText+strings.Repeat("x", 200)+"\nmore\n")
}

func TestReadUnix(t *testing.T) {
	if _, err := ReadNetUnix(linux(t)); err != nil {
		t.Error(err)
	}
}

func FuzzParseUnix(f *testing.F) { fuzz(f, ParseUnix, unixText) }
