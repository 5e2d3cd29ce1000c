package procfs

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// From Linux 6.18, with numbers that differ.
const smapText = `564d7a2c8000-564d7a389000 rw-p 0002f000 fe:00 246999                     /usr/bin/b sh
Size:                772 kB
KernelPageSize:        4 kB
MMUPageSize:           4 kB
Rss:                 608 kB
Pss:                 304 kB
Pss_Dirty:             0 kB
Shared_Clean:        600 kB
Shared_Dirty:          4 kB
Private_Clean:         1 kB
Private_Dirty:         3 kB
Referenced:          607 kB
Anonymous:             8 kB
KSM:                   2 kB
LazyFree:             12 kB
AnonHugePages:      2048 kB
ShmemPmdMapped:        0 kB
FilePmdMapped:         0 kB
Shared_Hugetlb:        0 kB
Private_Hugetlb:       0 kB
Swap:                 16 kB
SwapPss:               0 kB
Locked:               20 kB
THPeligible:           0
ProtectionKey:         3
VmFlags: rd wr mr mw me ac sd zz sl ?? 
`

const vsyscallText = `ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
Rss:                   0 kB
VmFlags: ex 
`

func TestParseSMaps(t *testing.T) {
	first := SMap{
		Mapping: Mapping{
			Start: 0x564d7a2c8000, End: 0x564d7a389000, Prot: ProtRead | ProtWrite, Offset: 0x2f000,
			Major: 0xfe, Inode: 246999, Name: "/usr/bin/b sh",
		},
		KernelPageSize: 4096, MMUPageSize: 4096, RSS: 608 << 10, PSS: 304 << 10, SharedClean: 600 << 10,
		SharedDirty:  4 << 10,
		PrivateClean: 1 << 10, PrivateDirty: 3 << 10, Referenced: 607 << 10, Anonymous: 8 << 10, KSM: 2 << 10,
		LazyFree: 12 << 10, AnonHugePages: 2 << 20, Swap: 16 << 10, Locked: 20 << 10, ProtectionKey: 3,
		Flags:      VMRead | VMWrite | VMMayRead | VMMayWrite | VMMayExec | VMAccount | VMSoftDirty | VMSealed,
		OtherFlags: "zz ??",
	}
	second := SMap{
		Mapping: Mapping{Start: 0xffffffffff600000, End: 0xffffffffff601000, Prot: ProtExec, Name: "[vsyscall]"},
		Flags:   VMExec,
	}
	checkParse(t, ParseSMaps, []parseCase[[]SMap]{
		{"two", smapText + vsyscallText, []SMap{first, second}}, {"none", "", nil},
	})
	checkRefused(t, ParseSMaps, "Rss: 1 kB\n", smapText+"\n", smapText+"nonsense\n", smapText+"Nonsense\n",
		replaced(t, smapText, "16 kB", "16 MB"), replaced(t, smapText, "16 kB", "18014398509481984 kB"),
		replaced(t, smapText, "Locked:               20 kB", "Locked:  kB"), replaced(t, smapText, "rw-p", "rw-"))
}

func TestVMFlagNames(t *testing.T) {
	all := VMDroppable<<1 - 1
	if n := len(strings.Fields(all.String())); n*2 != len(vmFlagCodes) {
		t.Errorf("%d codes for %d flags", n, len(vmFlagCodes)/2)
	}
	if got := parseVMFlags([]byte(all.String())); got != (flagSet{known: all}) {
		t.Errorf("codes of all flags are read as %v, others %q", got.known, got.other)
	}
	for flag, code := range map[VMFlag]string{
		VMRead: "rd", VMMayShare: "ms", VMGrowsDown: "gd", VMDontCopy: "dc", VMLockOnFault: "lf",
		VMWipeOnFork: "wf", VMDontDump: "dd", VMUffdWP: "uw", VMDroppable: "dp",
	} {
		if flag.String() != code {
			t.Errorf("%v should be %s", flag, code)
		}
	}
}

func TestEachSMapStops(t *testing.T) {
	stop := errors.New("stop")
	n := 0
	err := EachSMap(strings.NewReader(smapText+vsyscallText), func(*SMap) error { n++; return stop })
	if !errors.Is(err, stop) || n != 1 {
		t.Errorf("%d calls, %v", n, err)
	}
}

func TestReadSMaps(t *testing.T) {
	pid := linux(t)
	smaps, err := ReadSMaps(pid)
	if err != nil || len(smaps) < 5 {
		t.Fatalf("%d mappings, %v", len(smaps), err)
	}
	for _, m := range smaps {
		if m.OtherFlags != "" {
			t.Errorf("%s: this kernel has flags without a name here: %s", m.Name, m.OtherFlags)
		}
	}
}

func FuzzParseSMaps(f *testing.F) { fuzz(f, ParseSMaps, smapText, vsyscallText) }

func BenchmarkParseSMaps(b *testing.B) {
	var text bytes.Buffer
	for i := range 10_000 {
		fmt.Fprintf(&text, "%x-%x%s", 0x1000*i, 0x1000*i+0x1000, smapText[strings.IndexByte(smapText, ' '):])
	}
	b.SetBytes(int64(text.Len()))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseSMaps(bytes.NewReader(text.Bytes())); err != nil {
			b.Fatal(err)
		}
	}
}
