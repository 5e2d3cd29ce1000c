package blob

import (
	"bytes"
	"testing"

	"google.golang.org/protobuf/proto"
)

// sample is a valid image with something of every kind: an init with two threads,
// a stopped child that shares pages with it, and a zombie.
func sample(tb testing.TB) *Image {
	tb.Helper()
	return &Image{
		Host: &Host{
			Machine: "x86_64", KernelRelease: "6.18.44", PageSize: 4096, Xfeatures: 7, VdsoDigest: make([]byte, 32),
			EngineVersion: "v0.1.0", CreatedNs: 1_790_000_000_000_000_000, MonotonicNs: 5e9, BoottimeNs: 6e9,
			CgroupVersion: 2,
		},
		Container: &Container{
			Id: "web-1", Runtime: "runc", Externals: []string{"/dev/null", "pipe:[11]", "pipe:[12]"}, FileLocks: true,
			NsLastPid: 12,
		},
		Namespaces: &Namespaces{
			Hostname: "web", Domainname: "(none)", LoopbackUp: true, PrivateNet: true, UidMap: "0 1000 1",
			Tmpfs: []*Tmpfs{
				{Mountpoint: "/run", Archive: "tmpfs-1.tar", Size: 10240, Crc: 7}, {
					Mountpoint: "/tmp",
					Archive:    "tmpfs-2.tar", Size: 1024,
				},
			},
			Mounts: []*Mount{{
				Mountpoint: "/proc", Fstype: "proc", Root: "/", Options: "rw,nosuid;rw", Minor: 50,
				Id: 40,
			}},
		},
		Seccomp: &Seccomp{Filters: []*SeccompFilter{
			{Program: bytes.Repeat([]byte{6, 0, 0, 0, 0, 0, 0xff, 0x7f}, 2)}, {Program: make([]byte, 8), Flags: 2},
		}},
		Pages: &PageStore{File: "pages.img", Size: 2*4096 + 300, Chunks: []*Chunk{
			{Offset: 200, Stored: 2 * 4096, Raw: 2 * 4096, Crc: 1},
			{Stored: 200, Raw: 3 * 4096, Codec: Chunk_ZSTD, Crc: 2},
			{Offset: 2*4096 + 200, Stored: 100, Raw: 4096, Codec: Chunk_S2, Crc: 3},
			{Offset: 4096, Stored: 4096, Raw: 4096, Crc: 4, Store: 1},
			{Stored: 4096, Raw: 4096, Crc: 5, Store: 2},
		}, More: []*PageFile{{File: "pages-2.img", Size: 4096}}, Parents: []*ParentStore{{Dir: "../before", State: bytes.Repeat([]byte{9}, 32), File: "pages.img", Size: 8192}}},
		Contents: []*Contents{
			{Id: 1, Size: 4097, Extents: []*Extent{{Pages: 1, Chunk: 1, Page: 2}, {
				Start: 4096, Pages: 1, Chunk: 1,
				Page: 1,
			}}},
			{Id: 2},
		},
		Files: sampleFiles(tb),
		FDTables: []*FDTable{
			{Id: 1, Fds: []*FD{{Fd: 0, File: 3}, {Fd: 1, File: 4, Cloexec: true}, {Fd: 5, File: 2}, {Fd: 7, File: 5}}},
			{Id: 2, Fds: []*FD{{Fd: 0, File: 3}}},
		},
		MMs:       []*MM{sampleMM(1), sampleMM(2)},
		Processes: sampleProcesses(),
	}
}

func sampleFiles(tb testing.TB) []*File {
	tb.Helper()
	bodies := []struct {
		kind string
		body proto.Message
	}{
		{"path", &PathFile{Path: "/", Mode: 0o40755}},
		{"path", &PathFile{Path: "/bin/sh", Mode: 0o100755, Size: 1000}},
		{"external", &External{}},
		{"eventfd", &EventFD{Count: 3, Semaphore: true}},
		{"epoll", &EPoll{Entries: []*EPoll_Entry{{Fd: 1, Events: 0x19, Data: 1 << 63, Pid: 1, File: 4}}}},
		{"ghost", &GhostFile{Path: "/tmp/gone", Mode: 0o100600, Contents: 1, Inode: 1}},
		{"memfd", &MemFD{Name: "x", Contents: 2, Inode: 2}},
		{"pipe", &Pipe{Inode: 9, Size: 65536, Data: []byte("hello")}},
		{"fifo", &Pipe{Inode: 10, Size: 4096, Path: "/run/fifo"}},
		{"signalfd", &SignalFD{Mask: 2}},
		{"timerfd", &TimerFD{Clock: 1, ValueNs: 5, IntervalNs: 6}},
		{"unix", &UnixSocket{Type: 1, Inode: 3, Name: []byte("\x00abstract"), Listening: true}},
		{"inet", &InetSocket{Family: 2, Type: 1, Local: []byte{127, 0, 0, 1}, LocalPort: 80, Listening: true}},
		{"future", nil},
	}
	var out []*File
	for i, b := range bodies {
		f := &File{Id: uint32(i + 1), Kind: b.kind, Rev: 1, Flags: 2, Pos: 7, Name: b.kind, Owner: &Owner{
			Type: 1,
			Pid:  1, Signal: 29,
		}}
		if b.body != nil {
			f.Body = encode(tb, b.body)
		}
		out = append(out, f)
	}
	return out
}

func encode(tb testing.TB, m proto.Message) []byte {
	tb.Helper()
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

func sampleMM(id uint32) *MM {
	return &MM{
		Id: id, Exe: 2, StartCode: 0x400000, EndCode: 0x401000, StartBrk: 0x500000, Brk: 0x504000, Auxv: make([]byte,
			32),
		Vmas: []*VMA{
			{Start: 0x400000, End: 0x401000, Prot: 5, Kind: VMA_FILE, File: 2, Name: "/bin/sh"},
			{Start: 0x500000, End: 0x504000, Prot: 3, Name: "[heap]", Flags: uint64(VMAFlag_VMA_HUGEPAGE)},
			{Start: 0x504000, End: 0x505000, Prot: 3},
			{
				Start: 0x600000, End: 0x602000, Prot: 3, Kind: VMA_SHMEM, Shared: true, Contents: 1,
				Name: "/dev/zero (deleted)",
			},
			{
				Start: 0x700000, End: 0x701000, Prot: 3, Kind: VMA_FILE, File: 6, Shared: true,
				Flags: uint64(VMAFlag_VMA_MAYWRITE),
			},
			{Start: 0x800000, End: 0xe00000, Prot: 3},
			{Start: 0x1000000, End: 0x1400000, Prot: 3, Flags: uint64(VMAFlag_VMA_HUGETLB), Name: "/anon_hugepage (deleted)"},
			{Start: 0x7ffff7fc0000, End: 0x7ffff7fc4000, Prot: 1, Kind: VMA_VVAR, Name: "[vvar]"},
			{Start: 0x7ffff7fc4000, End: 0x7ffff7fc6000, Prot: 5, Kind: VMA_VDSO, Name: "[vdso]"},
			{Start: vsyscallPage, End: vsyscallPage + 4096, Prot: 4, Kind: VMA_VSYSCALL, Name: "[vsyscall]"},
		},
		Extents: []*Extent{{Start: 0x400000, Pages: 1, Chunk: 1}, {Start: 0x503000, Pages: 2}},
		Huge:    []*Huge{{Start: 0x800000, Count: 1}, {Start: 0xa00000, Count: 2}},
	}
}

func sampleProcesses() []*Process {
	return []*Process{
		{
			Pid: 1, Pgid: 1, Sid: 1, ExitSignal: 17, Comm: []byte("init"), Args: []string{"sh", "-c", ""}, Dumpable: 1,
			Mm: 1, FdTable: 1, Fs: &FS{Cwd: 1, Root: 1, Umask: 0o22}, OomScoreAdj: -999,
			Actions: []*SigAction{{
				Signal: 15, Handler: 0x400100, Flags: 0x4000000, Restorer: 0x400200,
				Mask: 1,
			}, {Signal: 64, Handler: 1}},
			SharedPending: []*SigInfo{sampleSignal(15)},
			Itimers:       []*ITimer{{Which: 2, IntervalUs: 1e6, ValueUs: 5}},
			Timers: []*PosixTimer{
				{
					Id: 0, Clock: 1, Notify: 4, Signal: 34, Value: 1 << 63, Tid: 3, IntervalNs: 1, ValueNs: 2,
					Overrun: 3,
				}, {Id: 3, Notify: 1, Signal: -5},
			},
			Rlimits: []*RLimit{{}, {Resource: 7, Soft: 1024, Hard: 1<<64 - 1}},
			Threads: []*Thread{sampleThread(1), sampleThread(3)},
			Locks: []*FileLock{{Kind: FileLock_POSIX, Write: true, Start: 5, End: 15, Fd: 5, File: 2}, {
				Fd:   5,
				File: 2,
			}},
		},
		{
			Pid: 7, Ppid: 1, Pgid: 7, Sid: 1, ExitSignal: 17, State: Process_STATE_STOPPED, StopSignal: 19,
			Comm: []byte("sleep"),
			Mm:   2, FdTable: 2, Fs: &FS{Cwd: 1}, Threads: []*Thread{sampleThread(7)},
		},
		{
			Pid: 9, Ppid: 7, Pgid: 7, Sid: 1, ExitSignal: 17, State: Process_STATE_ZOMBIE, ExitCode: 0x100,
			Comm: []byte("\xff("), Creds: &Creds{Uid: 1},
		},
	}
}

func sampleSignal(n byte) *SigInfo {
	s := &SigInfo{Info: make([]byte, 128)}
	s.Info[0] = n
	return s
}

func sampleThread(tid int32) *Thread {
	return &Thread{
		Tid: tid, Comm: []byte("t"), Gpr: make([]byte, 216), Xstate: make([]byte, 576), Debug: make([]uint64, 8),
		Sigmask: 1 << 9,
		Pending: []*SigInfo{sampleSignal(10)}, Altstack: &SigAltStack{Sp: 0x500000, Size: 8192}, ClearTid: 0x500010,
		RobustList: 0x500020, RobustListLen: 24, Rseq: &RSeq{Address: 0x500040, Size: 32, Signature: 0x53053053},
		Creds: &Creds{
			Uid: 1000, Euid: 1000, Suid: 1000, Fsuid: 1000, Groups: []uint32{4, 1000}, CapPermitted: 3, CapEffective: 1,
			CapBounding: 0xff, NoNewPrivs: true,
		},
		SeccompMode: 2, SeccompFilters: []uint32{0, 1}, Sched: &Sched{Nice: -5, Affinity: []byte{3}, IoPrio: 0x4004},
		Pdeathsig: 9, TimerSlackNs: 50000, Restart: &Restart{Nr: 35, Args: []uint64{1, 2}, LeftNs: -1},
	}
}
