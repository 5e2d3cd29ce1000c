package procfs

import (
	"os"
	"testing"
)

const fdHead = "pos:\t0\nflags:\t02000002\nmnt_id:\t17\nino:\t1038\n"

// fdTexts are from Linux 6.18 but where a name says otherwise.
var fdCases = []parseCase[FDInfo]{
	{"file", "pos:\t-4096\nflags:\t0100000\nmnt_id:\t24\nino:\t3\n", FDInfo{
		Pos: -4096, Flags: 0o100000, MntID: 24,
		Ino: 3, TTYIndex: -1,
	}},
	{"file of 5.10", "pos:\t9\nflags:\t0100000\nmnt_id:\t24\n", FDInfo{
		Pos: 9, Flags: 0o100000, MntID: 24,
		TTYIndex: -1,
	}},
	{
		"eventfd", fdHead + "eventfd-count:               1f\neventfd-id: 1\neventfd-semaphore: 1\n",
		with(func(f *FDInfo) {
			f.EventFD = &EventFD{Count: 0x1f, ID: 1, Semaphore: 1}
		}),
	},
	{"eventfd of 4.19", fdHead + "eventfd-count: ffffffffffffffff\n", with(func(f *FDInfo) {
		f.EventFD = &EventFD{Count: 1<<64 - 1, ID: -1, Semaphore: -1}
	})},
	{
		"signalfd", fdHead + "sigmask:\t8000000000000201\n",
		with(func(f *FDInfo) { f.SignalFD = &SignalFD{Mask: 1<<63 | 0x201} }),
	},
	{
		"timerfd", fdHead + "clockid: 1\nticks: 7\nsettime flags: 03\nit_value: (8, 999970994)\nit_interval: (1, 5)\n",
		with(func(f *FDInfo) {
			f.TimerFD = &TimerFD{Clock: 1, Ticks: 7, SettimeFlags: 3, ValueNS: 8_999_970_994, IntervalNS: 1_000_000_005}
		}),
	},
	{
		"epoll", fdHead + "tfd:        3 events:       19 data:                3  pos:0 ino:40e sdev:10\n" +
			"tfd:        5 events: 8000001c data: deadbeefdeadbeef  pos:-1 ino:40e sdev:fe00000\n",
		with(func(f *FDInfo) {
			f.EPoll = []EPollTarget{
				{FD: 3, Events: 0x19, Data: 3, Ino: 0x40e, Dev: 0x10},
				{FD: 5, Events: 0x8000001c, Data: 0xdeadbeefdeadbeef, Pos: -1, Ino: 0x40e, Dev: 0xfe00000},
			}
		}),
	},
	{
		"inotify",
		fdHead + "inotify wd:a ino:3c4a3 sdev:fe00000 mask:fff ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:a3c4030000000000\n" +
			"inotify wd:1 ino:2 sdev:3 mask:80000004 ignored_mask:0 \n",
		with(func(f *FDInfo) {
			f.Inotify = []InotifyWatch{
				{
					WD: 10, Ino: 0x3c4a3, Dev: 0xfe00000, Mask: 0xfff,
					Handle: &Handle{Type: 1, Data: []byte{0xa3, 0xc4, 3, 0, 0, 0, 0, 0}},
				},
				{WD: 1, Ino: 2, Dev: 3, Mask: 0x80000004},
			}
		}),
	},
	{
		"fanotify", fdHead + "fanotify flags:10 event-flags:8000\nfanotify mnt_id:12 mflags:0 mask:3b ignored_mask:0\n",
		with(func(f *FDInfo) {
			f.Fanotify = &Fanotify{
				Flags: 0x10, EventFlags: 0x8000,
				Marks: []string{"fanotify mnt_id:12 mflags:0 mask:3b ignored_mask:0"},
			}
		}),
	},
	{
		"locks", fdHead + "lock:\t1: FLOCK  ADVISORY  WRITE 18665 fe:00:9978017 0 EOF\n" +
			"lock:\t2: POSIX  ADVISORY  READ 18665 fe:00:9978017 5 14\nlock:\t3: OFDLCK ADVISORY  WRITE -1 fe:00:9978017 100 EOF\n",
		with(func(f *FDInfo) {
			f.Locks = []Lock{
				{"FLOCK", "ADVISORY", "WRITE", 18665, 0xfe, 0, 9978017, 0, LockToEnd},
				{"POSIX", "ADVISORY", "READ", 18665, 0xfe, 0, 9978017, 5, 14},
				{"OFDLCK", "ADVISORY", "WRITE", -1, 0xfe, 0, 9978017, 100, LockToEnd},
			}
		}),
	},
	{"pidfd", fdHead + "Pid:\t18665\nNSpid:\t18665\t2\n", with(func(f *FDInfo) {
		f.PidFD = &PidFD{18665, []int{
			18665,
			2,
		}}
	})},
	{"pidfd of the dead", fdHead + "Pid:\t-1\nNSpid:\t-1\n", with(func(f *FDInfo) { f.PidFD = &PidFD{-1, []int{-1}} })},
	{"pidfd from elsewhere", fdHead + "Pid:\t0\n", with(func(f *FDInfo) { f.PidFD = &PidFD{0, nil} })},
	{
		"io_uring", fdHead + "SqMask:\t0x3\nSqHead:\t0\nUserFiles:\t1\n    0: /etc/pass:wd\nPollList:\n",
		with(func(f *FDInfo) {
			f.IOURing = &IOURing{[]string{
				"SqMask:\t0x3", "SqHead:\t0", "UserFiles:\t1", "    0: /etc/pass:wd",
				"PollList:",
			}}
		}),
	},
	{"unix socket", fdHead + "scm_fds: 2\n", with(func(f *FDInfo) { f.SCMFDs = 2 })},
	{"pty master", fdHead + "tty-index:\t4\n", with(func(f *FDInfo) { f.TTYIndex = 4 })},
	{"userfaultfd", fdHead + "pending:\t0\ntotal:\t0\nAPI:\taa:0:80000000000001ff\n", with(func(f *FDInfo) {
		f.Extra = []string{"pending:\t0", "total:\t0", "API:\taa:0:80000000000001ff"}
	})},
	{"no colon", fdHead + "what is this\n", with(func(f *FDInfo) { f.Extra = []string{"what is this"} })},
}

// with is what fdHead alone gives, changed by f.
func with(f func(*FDInfo)) FDInfo {
	i := FDInfo{Flags: 0o2000002, MntID: 17, Ino: 1038, TTYIndex: -1}
	f(&i)
	return i
}

func TestParseFDInfo(t *testing.T) {
	checkParse(t, ParseFDInfo, fdCases)
	checkRefused(t, ParseFDInfo, "", "pos:\t0\nflags:\t02\n", fdHead+"pos:\t1\n", fdHead+"eventfd-id: 1\n",
		fdHead+"NSpid:\t1\n",
		fdHead+"Pid:\t5\n", replaced(t, fdHead, "02000002", "08"), fdHead+"eventfd-count: x\n",
		fdHead+"tfd: 1 events: 1 data: 1 pos:0 ino:1 sdev:1 new:1\n", fdHead+"tfd: 1 events\n",
		fdHead+"inotify wd:1 fhandle-bytes:9 fhandle-type:1 f_handle:a3\n", fdHead+"inotify wd:1 f_handle:a\n",
		fdHead+"inotify wd:1 what:1\n",
		fdHead+"fanotify flags:1 what:2\n", fdHead+"it_value: (1)\n", fdHead+"it_value: (1, 1000000000)\n",
		fdHead+"it_value: (9223372036854775807, 0)\n",
		fdHead+"lock:\t1: FLOCK  ADVISORY  WRITE 1 fe:00 0 EOF\n",
		fdHead+"lock:\t1: -> FLOCK  ADVISORY  WRITE 1 fe:00:1 0 EOF\n")
}

func TestReadFDInfo(t *testing.T) {
	pid := linux(t)
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // read only
	i, err := ReadFDInfo(pid, int(f.Fd()))
	if err != nil || !i.CloseOnExec() || len(i.Extra) != 0 {
		t.Errorf("fdinfo of a file: %+v, %v", i, err)
	}
}

func FuzzParseFDInfo(f *testing.F) {
	var seeds []string
	for _, c := range fdCases {
		seeds = append(seeds, c.text)
	}
	fuzz(f, ParseFDInfo, seeds...)
}
