package procfs

import (
	"os"
	"strings"
	"testing"
)

const (
	// From Linux 6.18, of a thread in a container; Mems_allowed is shortened.
	statusText = `Name:	a\\b\nc\x
Umask:	0022
State:	t (tracing stop)
Tgid:	18571
Ngid:	0
Pid:	18572
PPid:	18570
TracerPid:	77
Uid:	0	1	2	4294967294
Gid:	3	4	5	6
FDSize:	256
Groups:	4 24 1000 
NStgid:	18571	1
NSpid:	18572	2
NSpgid:	8474	0
NSsid:	8474	0
Kthread:	0
VmPeak:	    5004 kB
VmSize:	    4488 kB
VmLck:	       4 kB
VmPin:	       0 kB
VmHWM:	    1936 kB
VmRSS:	    1936 kB
RssAnon:	     444 kB
RssFile:	    1492 kB
RssShmem:	       0 kB
VmData:	     432 kB
VmStk:	     132 kB
VmExe:	     772 kB
VmLib:	    1596 kB
VmPTE:	      40 kB
VmSwap:	       0 kB
HugetlbPages:	    2048 kB
CoreDumping:	0
THP_enabled:	1
untag_mask:	0xffffffffffffffff
Threads:	3
SigQ:	2/96365
SigPnd:	0000000000000000
ShdPnd:	0000000000004000
SigBlk:	0000000000010000
SigIgn:	8000000000000000
SigCgt:	0000000000014002
CapInh:	0000000000000000
CapPrm:	000001fffeffffff
CapEff:	000001fffeffffff
CapBnd:	000001fffeffffff
CapAmb:	0000000000000001
NoNewPrivs:	1
Seccomp:	2
Seccomp_filters:	3
Speculation_Store_Bypass:	vulnerable
SpeculationIndirectBranch:	always enabled
Cpus_allowed:	3
Cpus_allowed_list:	0-1
Mems_allowed:	00000000,00000001
Mems_allowed_list:	0
voluntary_ctxt_switches:	3
nonvoluntary_ctxt_switches:	0
`
	// A zombie on Linux 4.19: no memory, no umask, fewer lines.
	zombieText = `Name:	sh
State:	Z (zombie)
Tgid:	9
Ngid:	0
Pid:	9
PPid:	1
TracerPid:	0
Uid:	1000	1000	1000	1000
Gid:	1000	1000	1000	1000
FDSize:	0
Groups:	 
NStgid:	9
NSpid:	9
NSpgid:	9
NSsid:	1
Threads:	1
SigQ:	0/96365
SigPnd:	0000000000000000
ShdPnd:	0000000000000000
SigBlk:	0000000000000000
SigIgn:	0000000000000000
SigCgt:	0000000000000000
CapInh:	0000000000000000
CapPrm:	0000000000000000
CapEff:	0000000000000000
CapBnd:	0000003fffffffff
CapAmb:	0000000000000000
NoNewPrivs:	0
Seccomp:	0
Cpus_allowed:	3
Cpus_allowed_list:	0-1
voluntary_ctxt_switches:	1
nonvoluntary_ctxt_switches:	0
`
)

func TestParseStatus(t *testing.T) {
	checkParse(t, ParseStatus, []parseCase[Status]{
		{"6.18 thread", statusText, Status{
			Name: "a\\b\nc\\x", Umask: 0o22, State: 't', TGID: 18571, PID: 18572, PPID: 18570, TracerPID: 77,
			UID: [4]uint32{0, 1, 2, 4294967294}, GID: [4]uint32{3, 4, 5, 6}, FDSize: 256, Groups: []uint32{4, 24, 1000},
			NStgid: []int{18571, 1}, NSpid: []int{18572, 2}, NSpgid: []int{8474, 0}, NSsid: []int{8474, 0},
			VMSize: 4488 << 10, VMLck: 4096, VMRSS: 1936 << 10, RSSAnon: 444 << 10, RSSFile: 1492 << 10,
			HugetlbPages: 2 << 20,
			THPEnabled:   true, Threads: 3, SigQueued: 2, SigQMax: 96365,
			ShdPnd: 1 << 14, SigBlk: 1 << 16, SigIgn: 1 << 63, SigCgt: 0x14002,
			CapPrm: 0x1fffeffffff, CapEff: 0x1fffeffffff, CapBnd: 0x1fffeffffff, CapAmb: 1,
			NoNewPrivs: true, Seccomp: SeccompFilter, SeccompFilters: 3, CPUsAllowedList: "0-1",
		}},
		{"4.19 zombie", zombieText, Status{
			Name: "sh", State: 'Z', TGID: 9, PID: 9, PPID: 1,
			UID: [4]uint32{1000, 1000, 1000, 1000}, GID: [4]uint32{1000, 1000, 1000, 1000},
			NStgid: []int{9}, NSpid: []int{9}, NSpgid: []int{9}, NSsid: []int{1}, Threads: 1, SigQMax: 96365,
			CapBnd: 0x3fffffffff, SeccompFilters: -1, CPUsAllowedList: "0-1",
		}},
	})
}

func TestParseStatusRefuses(t *testing.T) {
	cut, _, _ := strings.Cut(statusText, "NoNewPrivs")
	refused := []string{
		"", "Name:\tx\n", statusText + "Pid:\t1\n", cut,
		replaced(t, statusText, "Uid:\t0\t1\t2", "Uid:\t0\t1"),
		replaced(t, statusText, "Gid:\t3", "Gid:\t3\t3"),
		replaced(t, statusText, "NSpid:\t18572\t2", "NSpid:\t"),
		replaced(t, statusText, "0022", "0082"),
		replaced(t, statusText, "VmLck:\t       4 kB", "VmLck:\t       4 MB"),
		replaced(t, statusText, "VmLck:\t       4 kB", "VmLck:\t18014398509481984 kB"),
		replaced(t, statusText, "SigBlk:\t0000000000010000", "SigBlk:\t10000000000010000"),
		replaced(t, statusText, "NoNewPrivs:\t1", "NoNewPrivs:\t2"),
		replaced(t, statusText, "2/96365", "2"),
		replaced(t, statusText, "t (tracing stop)", "tracing"),
	}
	checkRefused(t, ParseStatus, refused...)
}

func TestReadStatus(t *testing.T) {
	pid := linux(t)
	s, err := ReadTaskStatus(pid, pid)
	if err != nil {
		t.Fatal(err)
	}
	if s.TGID != pid || s.PPID != os.Getppid() || int(s.UID[1]) != os.Geteuid() || s.VMRSS == 0 || s.SigCgt == 0 {
		t.Errorf("status of this process: %+v", s)
	}
	if _, err := ReadStatus(pid); err != nil {
		t.Error(err)
	}
}

func FuzzParseStatus(f *testing.F) { fuzz(f, ParseStatus, statusText, zombieText) }

func BenchmarkParseStatus(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseStatus(strings.NewReader(statusText)); err != nil {
			b.Fatal(err)
		}
	}
}
