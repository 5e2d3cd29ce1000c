package blob

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/stasis-cr/stasis/cr/errs"
)

// spoiled is one way in which an image can be wrong, and words of the error.
type spoiled struct {
	name  string
	spoil func(*Image)
	says  string
}

func checkSpoiled(t *testing.T, want error, cases []spoiled) {
	t.Helper()
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			img := sample(t)
			c.spoil(img)
			err := img.Validate()
			if !errors.Is(err, want) {
				t.Fatalf("error %v, want %v", err, want)
			}
			if !strings.Contains(err.Error(), c.says) {
				t.Errorf("error %q does not say %q", err, c.says)
			}
		})
	}
}

func TestSpoiledVersion(t *testing.T) {
	checkSpoiled(t, errs.ErrVersion, []spoiled{
		{"page size", func(i *Image) { i.Host.PageSize = 16384 }, "16384"},
		{"cgroup", func(i *Image) { i.Host.CgroupVersion = 3 }, "host"},
		{"codec", func(i *Image) { i.Pages.Chunks[1].Codec = 3 }, "chunk 1"},
		{"codec below all", func(i *Image) { i.Pages.Chunks[1].Codec = -1 }, "chunk 1"},
		{"vma kind", func(i *Image) { i.MMs[0].Vmas[1].Kind = 9 }, "mm 1: mapping 500000-504000"},
		{"vma flag", func(i *Image) { i.MMs[1].Vmas[1].Flags = 1 << 40 }, "mm 2"},
		{"state", func(i *Image) { i.Processes[1].State = 7 }, "process 7"},
		{"lock kind", func(i *Image) { i.Processes[0].Locks[1].Kind = 9 }, "lock on fd 5"},
		{"file rev", func(i *Image) { i.Files[3].Rev = 2 }, "file 4 (eventfd)"},
	})
}

func TestSpoiledTop(t *testing.T) {
	long := strings.Repeat("x", 5000)
	checkSpoiled(t, errs.ErrCorrupt, []spoiled{
		{"no host", func(i *Image) { i.Host = nil }, "host"},
		{"digest", func(i *Image) { i.Host.VdsoDigest = []byte{1} }, "digest"},
		{"machine", func(i *Image) { i.Host.Machine = long }, "host"},
		{"no container", func(i *Image) { i.Container = nil }, "container"},
		{"externals", func(i *Image) { i.Container.Externals = make([]string, 4) }, "4 externals"},
		{"external", func(i *Image) { i.Container.Externals[1] = "a\x00" }, "NUL"},
		{"last pid", func(i *Image) { i.Container.NsLastPid = maxPID + 1 }, "last pid"},
		{"hostname", func(i *Image) { i.Namespaces.Hostname = long[:65] }, "hostname"},
		{"gid map", func(i *Image) { i.Namespaces.GidMap = "\x00" }, "gid map"},
		{"mount", func(i *Image) { i.Namespaces.Mounts[0].Mountpoint = "proc" }, "mount 40"},
		{"tmpfs up", func(i *Image) { i.Namespaces.Tmpfs[0].Mountpoint = "/run/../../etc" }, "tmpfs"},
		{"tmpfs twice", func(i *Image) { i.Namespaces.Tmpfs[0].Mountpoint = "/tmp" }, "tmpfs /tmp: twice"},
		{"tmpfs size", func(i *Image) { i.Namespaces.Tmpfs[0].Size = 1 << 63 }, "tmpfs /run"},
		{"archive outside", func(i *Image) { i.Namespaces.Tmpfs[0].Archive = "../../etc/passwd" }, "file name"},
		{"archive hidden", func(i *Image) { i.Namespaces.Tmpfs[0].Archive = ".x" }, "file name"},
		{"archive is the state", func(i *Image) { i.Namespaces.Tmpfs[0].Archive = StateFile }, "file name"},
		{"archive without name", func(i *Image) { i.Namespaces.Tmpfs[0].Archive = "" }, "file name"},
		{"archive twice", func(i *Image) { i.Namespaces.Tmpfs[0].Archive = "tmpfs-2.tar" }, "twice"},
		{"filter", func(i *Image) { i.Seccomp.Filters[1].Program = make([]byte, 9) }, "seccomp filter 1"},
		{"filter of nothing", func(i *Image) { i.Seccomp.Filters[1].Program = nil }, "seccomp filter 1"},
		{"filter too long", func(i *Image) { i.Seccomp.Filters[0].Program = make([]byte, 8*4097) }, "seccomp filter 0"},
	})
}

func TestSpoiledPages(t *testing.T) {
	checkSpoiled(t, errs.ErrCorrupt, []spoiled{
		{"store name", func(i *Image) { i.Pages.File = "a/b" }, "page store"},
		{"store is an archive", func(i *Image) { i.Pages.File = "tmpfs-1.tar" }, "twice"},
		{"store too large", func(i *Image) { i.Pages.Size++ }, "page store"},
		{"chunk of nothing", func(i *Image) { i.Pages.Chunks[0].Raw = 0 }, "chunk 0"},
		{"chunk of half a page", func(i *Image) { i.Pages.Chunks[0].Raw = 2048 }, "chunk 0"},
		{"chunk too large", func(i *Image) { i.Pages.Chunks[0].Raw = maxRaw + 4096 }, "chunk 0"},
		{"chunk grown", func(i *Image) { i.Pages.Chunks[0].Stored += 4096 }, "chunk 0"},
		{"chunk shrunk by nothing", func(i *Image) { i.Pages.Chunks[0].Stored-- }, "chunk 0"},
		{"chunk of no bytes", func(i *Image) { i.Pages.Chunks[1].Stored = 0 }, "chunk 1"},
		{"chunk grown by its codec", func(i *Image) { i.Pages.Chunks[1].Stored = 3 * 4096 }, "chunk 1"},
		{"chunk overlaps", func(i *Image) { i.Pages.Chunks[0].Offset = 100 }, "chunk 0"},
		{"chunks at one place", func(i *Image) { i.Pages.Chunks[2].Offset = 0 }, "want"},
		{"chunk leaves a gap", func(i *Image) { i.Pages.Chunks[2].Offset++ }, "chunk 2"},
		{"chunk is missing", func(i *Image) { i.Pages.Chunks[1].Stored = 199 }, "chunk 0"},
		{"chunk beyond", func(i *Image) { i.Pages.Chunks[1].Offset = 1 << 63 }, "want 0"},
		{"no store", func(i *Image) { i.Pages = nil }, "no chunk"},
		{"chunk of no store", func(i *Image) { i.Pages.Chunks[3].Store = 3 }, "store 3 of 2"},
		{"chunk of another store", func(i *Image) { i.Pages.Chunks[3].Store, i.Pages.Chunks[3].Offset = 2, 0 }, "want 4096"},
		{"further file's name", func(i *Image) { i.Pages.More[0].File = "../x" }, "further file 1"},
		{"further file is the first", func(i *Image) { i.Pages.More[0].File = "pages.img" }, "twice"},
		{"further file is too large", func(i *Image) { i.Pages.More[0].Size++ }, "pages-2.img: 4097 bytes"},
		{"further file of nothing", func(i *Image) {
			i.Pages.More, i.Pages.Chunks[4].Store = append(i.Pages.More, &PageFile{File: "pages-3.img"}), 2
		}, "pages-3.img: 0 bytes"},
		{"further files without a first", func(i *Image) { i.Pages.File = "" }, "page store"},
		{"chunk leaves a gap in a further file", func(i *Image) { i.Pages.Chunks[4].Offset = 1 }, "chunk 4: at 1, want 0"},
		{"too many further files", func(i *Image) {
			for n := range maxMore {
				i.Pages.More = append(i.Pages.More, &PageFile{File: fmt.Sprintf("x-%d", n), Size: 1})
			}
		}, "one of"},
		{"chunk beyond its parent", func(i *Image) { i.Pages.Chunks[3].Offset = 4097 }, "4096 bytes at 4097"},
		{"chunk far beyond its parent", func(i *Image) { i.Pages.Chunks[3].Offset = 1<<64 - 1 }, "chunk 3"},
		{"parent's digest", func(i *Image) { i.Pages.Parents[0].State = []byte{1} }, "digest of 1"},
		{"parent's file", func(i *Image) { i.Pages.Parents[0].File = "../x" }, "parent 1"},
		{"parent's own state", func(i *Image) { i.Pages.Parents[0].File = StateFile }, "parent 1"},
		{"parent anywhere", func(i *Image) { i.Pages.Parents[0].Dir = "/etc" }, "directory"},
		{"parent is itself", func(i *Image) { i.Pages.Parents[0].Dir = "." }, "directory"},
		{"parent nowhere", func(i *Image) { i.Pages.Parents[0].Dir = "" }, "directory"},
		{"parent by detours", func(i *Image) { i.Pages.Parents[0].Dir = "a/../../b" }, "directory"},
		{"parent with NUL", func(i *Image) { i.Pages.Parents[0].Dir = "../a\x00b" }, "directory"},
		{"parent far away", func(i *Image) { i.Pages.Parents[0].Dir = "../" + strings.Repeat("a", 5000) }, "directory"},
		{"too many parents", func(i *Image) {
			for range maxParents {
				i.Pages.Parents = append(i.Pages.Parents, i.Pages.Parents[0])
			}
		}, "one of"},
		{"contents id", func(i *Image) { i.Contents[1].Id = 1 }, "contents id 1"},
		{"contents size", func(i *Image) { i.Contents[1].Size = 1 << 63 }, "contents 2"},
		{"contents beyond its end", func(i *Image) { i.Contents[0].Size = 4096 }, "contents 1: pages at 1000"},
		{"contents from nowhere", func(i *Image) { i.Contents[0].Extents[0].Chunk = 5 }, "no chunk 5"},
		{"contents many times", func(i *Image) {
			c := &Contents{Id: 2, Size: 1 << 30}
			for n := range uint64(7) {
				c.Extents = append(c.Extents, &Extent{Start: n * 4096, Pages: 1})
			}
			i.Contents[1] = c
		}, "contents 2: more pages"},
		{"extent of nothing", func(i *Image) { i.MMs[0].Extents[0].Pages = 0 }, "mm 1: pages at 400000"},
		{"extent off", func(i *Image) { i.MMs[0].Extents[0].Start++ }, "pages at 400001"},
		{"extents overlap", func(i *Image) { i.MMs[0].Extents[1].Start = 0x400000 }, "mm 1"},
		{"extent beyond its chunk", func(i *Image) { i.MMs[0].Extents[1].Page = 1 }, "chunk 0, which has 2"},
		{
			"extent wraps", func(i *Image) { i.MMs[0].Extents[1].Pages, i.MMs[0].Extents[1].Page = 2, 1<<32-1 },
			"which has 2",
		},
		{"extent in a hole", func(i *Image) { i.MMs[0].Extents[1].Start = 0x504000 }, "nothing to put them in"},
		{"extent before all", func(i *Image) { i.MMs[0].Extents[0].Start = 0 }, "nothing to put them in"},
		{"extent in shared memory", func(i *Image) { i.MMs[0].Extents[1].Start = 0x600000 }, "nothing to put them in"},
		{"extent in the vdso", func(i *Image) { i.MMs[0].Extents[1].Start = 0x7ffff7fc4000 }, "nothing to put them in"},
		{"extent at the end of numbers", func(i *Image) { i.MMs[0].Extents[1].Start = 1<<64 - 4096 }, "pages at"},
	})
}

func TestSpoiledMM(t *testing.T) {
	vma := func(n int, f func(*VMA)) func(*Image) { return func(i *Image) { f(i.MMs[0].Vmas[n]) } }
	checkSpoiled(t, errs.ErrCorrupt, []spoiled{
		{"id", func(i *Image) { i.MMs[0].Id = 2 }, "mm id 2"},
		{"id 0", func(i *Image) { i.MMs[0].Id = 0 }, "mm id 0"},
		{"brk", func(i *Image) { i.MMs[0].Brk = 1 << 48 }, "mm 1: address"},
		{"auxv", func(i *Image) { i.MMs[0].Auxv = make([]byte, 8) }, "auxiliary vector"},
		{"auxv too long", func(i *Image) { i.MMs[0].Auxv = make([]byte, 8192) }, "auxiliary vector"},
		{"exe", func(i *Image) { i.MMs[0].Exe = 99 }, "no file 99"},
		{"no exe", func(i *Image) { i.MMs[0].Exe = 0 }, "no file 0"},
		{"start", vma(0, func(a *VMA) { a.Start++ }), "mapping 400001-401000"},
		{"end", vma(0, func(a *VMA) { a.End-- }), "mapping 400000-400fff"},
		{"empty", vma(0, func(a *VMA) { a.End = a.Start }), "mapping"},
		{"backwards", vma(0, func(a *VMA) { a.End = 0x1000 }), "mapping"},
		{"overlap", vma(1, func(a *VMA) { a.Start = 0x400000 }), "ends at 401000"},
		{"beyond", vma(8, func(a *VMA) { a.End = taskSize + 4096 }), "pages of a task"},
		{"vsyscall elsewhere", vma(9, func(a *VMA) { a.Start += 4096; a.End += 4096 }), "pages of a task"},
		{"vsyscall too long", vma(9, func(a *VMA) { a.End += 4096 }), "pages of a task"},
		{"program up there", vma(9, func(a *VMA) { a.Kind = VMA_ANON }), "pages of a task"},
		{"prot", vma(0, func(a *VMA) { a.Prot = 8 }), "protection"},
		{"offset", vma(0, func(a *VMA) { a.Offset = 1 }), "offset"},
		{"offset wraps", vma(0, func(a *VMA) { a.Offset = 1<<63 - 4096 }), "offset"},
		{"file", vma(0, func(a *VMA) { a.File = 99 }), "file 99"},
		{"no file", vma(0, func(a *VMA) { a.File = 0 }), "file 0"},
		{"anonymous file", vma(1, func(a *VMA) { a.File = 2 }), "file 2"},
		{"shared anonymous", vma(1, func(a *VMA) { a.Shared = true }), "shared: true"},
		{"contents", vma(3, func(a *VMA) { a.Contents = 9 }), "contents 9"},
		{"private shared memory", vma(3, func(a *VMA) { a.Shared = false }), "shared: false"},
		{"file of huge pages", vma(0, func(a *VMA) { a.Flags = uint64(VMAFlag_VMA_HUGETLB) }), "not a range of huge pages"},
		{"part of a huge page", vma(6, func(a *VMA) { a.End -= 4096 }), "not a range of huge pages"},
	})
}

func TestSpoiledHuge(t *testing.T) {
	huge := func(n int, f func(*Huge)) func(*Image) { return func(i *Image) { f(i.MMs[0].Huge[n]) } }
	checkSpoiled(t, errs.ErrCorrupt, []spoiled{
		{"unaligned", huge(0, func(h *Huge) { h.Start += 4096 }), "1 huge pages at 801000"},
		{"none", huge(0, func(h *Huge) { h.Count = 0 }), "0 huge pages"},
		{"overlap", huge(1, func(h *Huge) { h.Start = 0x800000 }), "2 huge pages at 800000"},
		{"too many", huge(1, func(h *Huge) { h.Count = 3 }), "3 huge pages"},
		{"most", huge(1, func(h *Huge) { h.Count = 1<<32 - 1 }), "huge pages at a00000"},
		{"no address", huge(1, func(h *Huge) { h.Start = 1<<64 - hugeSize }), "huge pages at"},
		{"of a file", huge(0, func(h *Huge) { h.Start = 0x400000 }), "huge pages at 400000"},
		{"of the pool", huge(1, func(h *Huge) { h.Start = 0x1000000 }), "huge pages of both kinds"},
	})
}

func TestSpoiledFiles(t *testing.T) {
	body := func(n int, m proto.Message) func(*Image) { return func(i *Image) { i.Files[n].Body = encode(t, m) } }
	checkSpoiled(t, errs.ErrCorrupt, []spoiled{
		{"id", func(i *Image) { i.Files[0].Id = 2 }, "file id 2"},
		{"kind", func(i *Image) { i.Files[0].Kind = "" }, "kind"},
		{"rev", func(i *Image) { i.Files[0].Rev = 0 }, "revision"},
		{"pos", func(i *Image) { i.Files[0].Pos = 1 << 63 }, "position"},
		{"name", func(i *Image) { i.Files[0].Name = "\x00" }, "name"},
		{"owner", func(i *Image) { i.Files[0].Owner.Signal = 65 }, "owner"},
		{"owner's pid", func(i *Image) { i.Files[0].Owner.Pid = -1 }, "owner"},
		{"body", func(i *Image) { i.Files[0].Body = []byte{0xff} }, "file 1 (path): body"},
		{"path", body(0, &PathFile{Path: "etc"}), "absolute"},
		{"path up", body(0, &PathFile{Path: "/a/.."}), "path"},
		{"path with NUL", body(0, &PathFile{Path: "/a\x00"}), "NUL"},
		{"path too long", body(0, &PathFile{Path: "/" + strings.Repeat("x", maxPath)}), "path"},
		{"stdio", body(2, &External{Index: 3}), "stdio 3"},
		{"epoll fd", body(4, &EPoll{Entries: []*EPoll_Entry{{Fd: -1, Pid: 1, File: 1}}}), "fd -1"},
		{"epoll file", body(4, &EPoll{Entries: []*EPoll_Entry{{Pid: 1, File: 99}}}), "file 99"},
		{"epoll pid", body(4, &EPoll{Entries: []*EPoll_Entry{{Pid: 2, File: 1}}}), "process 2"},
		{"ghost contents", body(5, &GhostFile{Path: "/x", Contents: 9}), "contents 9"},
		{"ghost path", body(5, &GhostFile{Path: "x", Contents: 1}), "absolute"},
		{"memfd contents", body(6, &MemFD{}), "contents 0"},
		{"memfd name", body(6, &MemFD{Contents: 1, Name: strings.Repeat("x", 256)}), "name"},
		{"pipe", body(7, &Pipe{Size: 4, Data: []byte("hello")}), "5 bytes in a pipe of 4"},
		{"pipe size", body(7, &Pipe{Size: 1 << 30}), "pipe"},
		{"fifo", body(8, &Pipe{Path: "x"}), "absolute"},
		{"timerfd", body(10, &TimerFD{ValueNs: -1}), "-1 ns"},
		{"unix", body(11, &UnixSocket{Name: make([]byte, 109)}), "109"},
		{"unix dir", body(11, &UnixSocket{Dir: "x"}), "absolute"},
		{"inet", body(12, &InetSocket{Local: []byte{1}}), "1 bytes"},
		{"inet port", body(12, &InetSocket{LocalPort: 1 << 16}), "ports"},
		{"table id", func(i *Image) { i.FDTables[1].Id = 1 }, "table id 1"},
		{"fd order", func(i *Image) { i.FDTables[0].Fds[1].Fd = 0 }, "fd 0 after fd 0"},
		{"fd below", func(i *Image) { i.FDTables[0].Fds[0].Fd = -1 }, "fd -1"},
		{"fd above", func(i *Image) { i.FDTables[0].Fds[3].Fd = maxFD }, "fd"},
		{"fd file", func(i *Image) { i.FDTables[0].Fds[0].File = 99 }, "no file 99"},
	})
}

func TestSpoiledTree(t *testing.T) {
	checkSpoiled(t, errs.ErrCorrupt, []spoiled{
		{"nobody", func(i *Image) { i.Processes = nil }, "no process 1"},
		{"no init", func(i *Image) { i.Processes[0].Pid = 2 }, "process 2"},
		{"init has a parent", func(i *Image) { i.Processes[0].Ppid = 7 }, "process 1: parent 7"},
		{"two inits", func(i *Image) { i.Processes[1].Ppid = 0 }, "process 7: parent 0"},
		{"pid", func(i *Image) { i.Processes[1].Pid = maxPID + 1 }, "out of range"},
		{"pid twice", func(i *Image) { i.Processes[2].Pid = 7 }, "not unique"},
		{"no parent", func(i *Image) { i.Processes[1].Ppid = 5 }, "no living parent 5"},
		{"own parent", func(i *Image) { i.Processes[1].Ppid = 7 }, "own ancestor"},
		{
			"child of the dead", func(i *Image) { i.Processes[1].Ppid = 9; i.Processes[2].Ppid = 1 },
			"no living parent 9",
		},
		{"group", func(i *Image) { i.Processes[1].Pgid = -1 }, "group -1"},
		{"session", func(i *Image) { i.Processes[1].Sid = maxPID + 1 }, "session"},
		{
			"leader of a session only", func(i *Image) { i.Processes[1].Sid = 7; i.Processes[1].Pgid = 1 },
			"leads session 7",
		},
		{"group in two sessions", func(i *Image) { i.Processes[2].Sid = 0 }, "sessions 1 and 0"},
		{"exit signal", func(i *Image) { i.Processes[1].ExitSignal = 65 }, "signal 65"},
		{"comm", func(i *Image) { i.Processes[1].Comm = make([]byte, 1) }, "name"},
		{"comm too long", func(i *Image) { i.Processes[1].Comm = bytes.Repeat([]byte("x"), 16) }, "name"},
		{"zombie init", func(i *Image) {
			i.Processes = []*Process{{Pid: 1, State: Process_STATE_ZOMBIE}}
			i.Files[4] = &File{Id: 5, Kind: "x", Rev: 1}
		}, "init is a zombie"},
		{"zombie with memory", func(i *Image) { i.Processes[2].Mm = 1 }, "zombie"},
		{"zombie with threads", func(i *Image) { i.Processes[2].Threads = []*Thread{sampleThread(9)} }, "zombie"},
		{"zombie's status", func(i *Image) { i.Processes[2].ExitCode = 1 << 16 }, "exit status"},
		{"status of the living", func(i *Image) { i.Processes[1].ExitCode = 1 }, "exit status"},
		{"mm", func(i *Image) { i.Processes[1].Mm = 3 }, "no mm 3"},
		{"mm of another", func(i *Image) { i.Processes[1].Mm = 1 }, "another's"},
		{"table", func(i *Image) { i.Processes[1].FdTable = 3 }, "no descriptor table 3"},
		{"table of another", func(i *Image) { i.Processes[1].FdTable = 1 }, "another's"},
		{"no fs", func(i *Image) { i.Processes[1].Fs = nil }, "directory"},
		{"cwd", func(i *Image) { i.Processes[1].Fs.Cwd = 99 }, "no file 99"},
		{"root", func(i *Image) { i.Processes[1].Fs.Root = 99 }, "root"},
		{"umask", func(i *Image) { i.Processes[1].Fs.Umask = 0o1000 }, "umask"},
	})
}

func TestSpoiledProcess(t *testing.T) {
	init := func(f func(*Process)) func(*Image) { return func(i *Image) { f(i.Processes[0]) } }
	checkSpoiled(t, errs.ErrCorrupt, []spoiled{
		{"oom", init(func(p *Process) { p.OomScoreAdj = 1001 }), "oom_score_adj"},
		{"dumpable", init(func(p *Process) { p.Dumpable = 3 }), "dumpable"},
		{"action 0", init(func(p *Process) { p.Actions[0].Signal = 0 }), "signal 0"},
		{"action 65", init(func(p *Process) { p.Actions[0].Signal = 65 }), "signal 65"},
		{"action of SIGKILL", init(func(p *Process) { p.Actions[0].Signal = 9 }), "signal 9"},
		{"action twice", init(func(p *Process) { p.Actions[0].Signal = 64 }), "signal 64"},
		{"pending", init(func(p *Process) { p.SharedPending[0].Info = make([]byte, 127) }), "127 bytes"},
		{"pending 0", init(func(p *Process) { p.SharedPending[0].Info[0] = 0 }), "pending signal 0"},
		{"pending 256", init(func(p *Process) { p.SharedPending[0].Info[1] = 1 }), "pending signal"},
		{"itimer", init(func(p *Process) { p.Itimers[0].Which = 3 }), "interval timer 3"},
		{"itimer twice", init(func(p *Process) { p.Itimers = append(p.Itimers, p.Itimers[0]) }), "interval timer 2"},
		{"timer id", init(func(p *Process) { p.Timers[1].Id = 0 }), "timer 0"},
		{"timer notify", init(func(p *Process) { p.Timers[1].Notify = 3 }), "notify 3"},
		{"timer signal", init(func(p *Process) { p.Timers[0].Signal = 0 }), "signal 0"},
		{"timer thread", init(func(p *Process) { p.Timers[0].Tid = 7 }), "no thread 7"},
		{"timer value", init(func(p *Process) { p.Timers[0].ValueNs = -1 }), "timer 0"},
		{"limit", init(func(p *Process) { p.Rlimits[1].Resource = 16 }), "limit 16"},
		{"limit twice", init(func(p *Process) { p.Rlimits[1].Resource = 0 }), "limit 0"},
		{"limit above", init(func(p *Process) { p.Rlimits[1].Hard = 1 }), "limit 7"},
		{"lock fd", init(func(p *Process) { p.Locks[0].Fd = 6 }), "lock on fd 6"},
		{"lock file", init(func(p *Process) { p.Locks[0].File = 3 }), "lock on fd 5"},
		{"lock range", init(func(p *Process) { p.Locks[0].End = 5 }), "bytes 5 to 5"},
		{"lock start", init(func(p *Process) { p.Locks[1].Start = 1 << 63 }), "lock"},
	})
}

func TestSpoiledThread(t *testing.T) {
	second := func(f func(*Thread)) func(*Image) { return func(i *Image) { f(i.Processes[0].Threads[1]) } }
	checkSpoiled(t, errs.ErrCorrupt, []spoiled{
		{"none", func(i *Image) { i.Processes[1].Threads = nil }, "first thread is not 7"},
		{"leader", func(i *Image) { i.Processes[1].Threads[0].Tid = 8 }, "first thread is not 7"},
		{"tid", second(func(t *Thread) { t.Tid = 0 }), "tid 0"},
		{"tid twice", second(func(t *Thread) { t.Tid = 1 }), "thread 1 is a process"},
		{"tid of another", second(func(t *Thread) { t.Tid = 7 }), "thread 7 is a process"},
		{"tid of the dead", second(func(t *Thread) { t.Tid = 9 }), "thread 9 is a process"},
		{"gpr", second(func(t *Thread) { t.Gpr = t.Gpr[1:] }), "215"},
		{"xstate", second(func(t *Thread) { t.Xstate = t.Xstate[8:] }), "568"},
		{"xstate odd", second(func(t *Thread) { t.Xstate = make([]byte, 577) }), "577"},
		{"xstate too long", second(func(t *Thread) { t.Xstate = make([]byte, 16392) }), "16392"},
		{"debug", second(func(t *Thread) { t.Debug = t.Debug[1:] }), "7 debug"},
		{"death signal", second(func(t *Thread) { t.Pdeathsig = 65 }), "death signal"},
		{"rseq", second(func(t *Thread) { t.Rseq.Address = 1 << 63 }), "rseq"},
		{"robust list", second(func(t *Thread) { t.RobustList = 1 << 63 }), "robust"},
		{"restart", second(func(t *Thread) { t.Restart.Args = make([]uint64, 7) }), "7 arguments"},
		{"restart time", second(func(t *Thread) { t.Restart.LeftNs = -2 }), "-2 ns"},
		{"comm", second(func(t *Thread) { t.Comm = []byte("0123456789abcdef") }), "name"},
		{"pending", second(func(t *Thread) { t.Pending[0].Info[0] = 65 }), "pending signal 65"},
		{"creds", second(func(t *Thread) { t.Creds = nil }), "credentials"},
		{"groups", second(func(t *Thread) { t.Creds.Groups = make([]uint32, 65537) }), "65537 groups"},
		{"capabilities", second(func(t *Thread) { t.Creds.CapEffective = 4 }), "capabilities"},
		{"nice", second(func(t *Thread) { t.Sched.Nice = 20 }), "nice 20"},
		{"priority", second(func(t *Thread) { t.Sched.Priority = 100 }), "priority 100"},
		{"affinity", second(func(t *Thread) { t.Sched.Affinity = make([]byte, 1025) }), "1025"},
		{"seccomp mode", second(func(t *Thread) { t.SeccompMode = 3 }), "seccomp mode 3"},
		{"no filters", second(func(t *Thread) { t.SeccompFilters = nil }), "seccomp mode 2"},
		{"filters unused", second(func(t *Thread) { t.SeccompMode = 0 }), "seccomp mode 0"},
		{"filter", second(func(t *Thread) { t.SeccompFilters[1] = 2 }), "no seccomp filter 2"},
		{"filter list", func(i *Image) { i.Seccomp = nil }, "no seccomp filter 0"},
	})
}

// TestManyProcesses checks that a long chain of children takes no longer than its
// length.
func TestManyProcesses(t *testing.T) {
	img := sample(t)
	for pid := int32(10); pid < 200_000; pid++ {
		p := &Process{Pid: pid, Ppid: 1, State: Process_STATE_ZOMBIE}
		img.Processes = append(img.Processes, p)
	}
	if err := img.Validate(); err != nil {
		t.Error(err)
	}
	for i, p := range img.Processes[3:] { // a chain is refused, but only after it was followed
		p.Ppid = max(7, int32(i)+9)
		p.State = Process_STATE_RUNNING
	}
	img.Processes[2].State = Process_STATE_RUNNING
	if err := img.Validate(); !errors.Is(err, errs.ErrCorrupt) {
		t.Errorf("a chain of processes without memory: %v", err)
	}
}
