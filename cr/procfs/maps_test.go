package procfs

import (
	"strings"
	"testing"
)

const mapsText = "00400000-00452000 r-xp 00000000 08:02 173521      /usr/bin/db us\n" +
	"7f0000000000-7f0000001000 rw-s 00001000 00:01 1051                       /memfd:x (deleted)\n" +
	"7f0000001000-7f0000002000 ---p 00000000 00:00 0 \n" +
	"7fff00000000-7fff00021000 rw-p 00000000 00:00 0                          [stack]\n" +
	"ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n"

func TestParseMaps(t *testing.T) {
	checkParse(t, ParseMaps, []parseCase[[]Mapping]{{"several", mapsText, []Mapping{
		{
			Start: 0x400000, End: 0x452000, Prot: ProtRead | ProtExec, Major: 8, Minor: 2, Inode: 173521,
			Name: "/usr/bin/db us",
		},
		{
			Start: 0x7f0000000000, End: 0x7f0000001000, Prot: ProtRead | ProtWrite, Shared: true, Offset: 0x1000,
			Minor: 1, Inode: 1051, Name: "/memfd:x (deleted)",
		},
		{Start: 0x7f0000001000, End: 0x7f0000002000},
		{Start: 0x7fff00000000, End: 0x7fff00021000, Prot: ProtRead | ProtWrite, Name: "[stack]"},
		{Start: 0xffffffffff600000, End: 0xffffffffff601000, Prot: ProtExec, Name: "[vsyscall]"},
	}}, {"kernel thread", "", nil}})
	checkRefused(t, ParseMaps, "\n", "0-1 r-xp 0 0:0 x", "1-1 r-xp 0 0:0 0", "2-1 r-xp 0 0:0 0", "0-1 rrxp 0 0:0 0",
		"0-1 r-x 0 0:0 0",
		"0-1 r-xq 0 0:0 0", "0 r-xp 0 0:0 0", "0-1 r-xp 0 0 0", "0-1 r-xp 0 0:0", "0-1 r-xp 0 100000000:0 0",
		mapsText+"x")
}

func TestReadMaps(t *testing.T) {
	maps, err := ReadMaps(linux(t))
	if err != nil || len(maps) < 5 || !strings.HasPrefix(maps[0].Name, "/") {
		t.Errorf("mappings of this process: %+v, %v", maps, err)
	}
}

func FuzzParseMaps(f *testing.F) { fuzz(f, ParseMaps, mapsText) }
