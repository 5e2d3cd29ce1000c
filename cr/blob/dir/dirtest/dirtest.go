// Package dirtest makes small checkpoints for tests.
package dirtest

import (
	"bytes"
	"hash/crc32"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/blob/dir"
)

// Names of the files that an image of this package uses besides the state.
const (
	Pages = "pages.img"
	More  = "pages-2.img"
	Tmpfs = "tmpfs-1.tar"
)

var tmpfsBytes = bytes.Repeat([]byte("tar!"), 256)

// Image is a valid image of two processes and a zombie: a shell with a terminal
// of its caller, and a child that shares no more with it than pages. Each call
// makes a new one.
func Image(tb testing.TB) *blob.Image {
	tb.Helper()
	return &blob.Image{
		Host: &blob.Host{
			Machine: "x86_64", KernelRelease: "6.18.0", PageSize: 4096, Xfeatures: 7,
			VdsoDigest: make([]byte, 32), EngineVersion: "v0.1.0", CreatedNs: 1_800_000_000_000_000_000,
			MonotonicNs: 5_000_000_000, BoottimeNs: 5_000_000_000, CgroupVersion: 2,
		},
		Container: &blob.Container{
			Id: "c1", Runtime: "runc", Externals: []string{"/dev/null", "pipe:[11]", "pipe:[12]"},
			FileLocks: true, NsLastPid: 9,
		},
		Namespaces: &blob.Namespaces{
			Hostname: "box",
			Tmpfs: []*blob.Tmpfs{{
				Mountpoint: "/run", Archive: Tmpfs, Size: uint64(len(tmpfsBytes)), Crc: sum(tmpfsBytes),
			}},
		},
		Files:     files(tb),
		FDTables:  tables(),
		MMs:       []*blob.MM{mm(1, 0), mm(2, 1)},
		Processes: processes(),
		Pages: &blob.PageStore{File: Pages, Size: 2 * 4096, Chunks: []*blob.Chunk{
			{Offset: 0, Stored: 2 * 4096, Raw: 2 * 4096, Crc: sum(page(2))},
			{Offset: 0, Stored: 4096, Raw: 4096, Crc: sum(page(1)), Store: 1},
		}, More: []*blob.PageFile{{File: More, Size: 4096}}},
	}
}

func sum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

func page(n int) []byte { return bytes.Repeat([]byte{0xa5}, n*4096) }

func files(tb testing.TB) []*blob.File {
	tb.Helper()
	return []*blob.File{
		file(tb, 1, "path", 0o10200000, &blob.PathFile{Path: "/", Mode: 0o40755}, "/"),
		file(tb, 2, "path", 0, &blob.PathFile{Path: "/bin/sh", Mode: 0o100755, Size: 1000}, "/bin/sh"),
		file(tb, 3, "external", 0, &blob.External{Index: 0}, "/dev/null"),
		file(tb, 4, "external", 1, &blob.External{Index: 1}, "pipe:[11]"),
		file(tb, 5, "eventfd", 2, &blob.EventFD{Count: 3}, "anon_inode:[eventfd]"),
	}
}

func file(tb testing.TB, id uint32, kind string, flags uint32, body proto.Message, name string) *blob.File {
	tb.Helper()
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(body)
	if err != nil {
		tb.Fatal(err)
	}
	return &blob.File{Id: id, Kind: kind, Rev: 1, Flags: flags, Body: b, Name: name}
}

func tables() []*blob.FDTable {
	return []*blob.FDTable{
		{Id: 1, Fds: []*blob.FD{{Fd: 0, File: 3}, {Fd: 1, File: 4}, {Fd: 7, File: 5, Cloexec: true}}},
		{Id: 2, Fds: []*blob.FD{{Fd: 0, File: 3}}},
	}
}

// mm is an address space of a file mapping and a heap of 4 pages, one or two of
// which are in chunk.
func mm(id, chunk uint32) *blob.MM {
	return &blob.MM{
		Id: id, Exe: 2, StartBrk: 0x500000, Brk: 0x504000,
		Vmas: []*blob.VMA{
			{Start: 0x400000, End: 0x401000, Prot: 5, Kind: blob.VMA_FILE, File: 2, Name: "/bin/sh"},
			{Start: 0x500000, End: 0x504000, Prot: 3, Kind: blob.VMA_ANON, Name: "[heap]"},
		},
		Extents: []*blob.Extent{{Start: 0x501000, Pages: 2 - chunk, Chunk: chunk}},
	}
}

func processes() []*blob.Process {
	return []*blob.Process{
		process(1, 0, "sh", "sh", "-c", "while :; do sleep 1; done"),
		process(7, 1, "sleep", "sleep", "1"),
		{
			Pid: 9, Ppid: 1, Pgid: 1, Sid: 1, ExitSignal: 17, State: blob.Process_STATE_ZOMBIE,
			ExitCode: 0x100, Comm: []byte("true"), Creds: &blob.Creds{Uid: 1000, Euid: 1000, Suid: 1000, Fsuid: 1000},
		},
	}
}

func process(pid, ppid int32, comm string, args ...string) *blob.Process {
	n := uint32(1)
	if ppid != 0 {
		n = 2
	}
	return &blob.Process{
		Pid: pid, Ppid: ppid, Pgid: 1, Sid: 1, ExitSignal: 17, Comm: []byte(comm), Args: args, Dumpable: 1,
		Mm: n, FdTable: n, Fs: &blob.FS{Cwd: 1, Umask: 0o22},
		Threads: []*blob.Thread{{
			Tid: pid, Comm: []byte(comm), Gpr: make([]byte, 216), Xstate: make([]byte, 576),
			Creds: &blob.Creds{}, Sched: &blob.Sched{Affinity: []byte{3}},
		}},
	}
}

// Write writes Image to the directory path.
func Write(tb testing.TB, path string) {
	tb.Helper()
	write(tb, path, Image(tb))
}

// WriteOther writes an image of another moment.
func WriteOther(tb testing.TB, path string) {
	tb.Helper()
	img := Image(tb)
	img.Host.CreatedNs++
	write(tb, path, img)
}

func write(tb testing.TB, path string, img *blob.Image) {
	tb.Helper()
	w, err := dir.Create(path)
	if err != nil {
		tb.Fatal(err)
	}
	Fill(tb, w)
	if err := w.Commit(img); err != nil {
		tb.Fatal(err)
	}
}

// Fill writes the files that Image names.
func Fill(tb testing.TB, w *dir.Writer) {
	tb.Helper()
	for name, b := range map[string][]byte{Pages: page(2), More: page(1), Tmpfs: tmpfsBytes} {
		f, err := w.Create(name)
		if err != nil {
			tb.Fatal(err)
		}
		if _, err := f.Write(b); err != nil {
			tb.Fatal(err)
		}
	}
}
