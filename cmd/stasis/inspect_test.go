package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/stasis-cr/stasis/cr"
	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/blob/dir/dirtest"
)

// golden compares got with a file of testdata; with -update it writes the file.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	name = filepath.Join("testdata", name)
	if flag.Lookup("update").Value.String() == "true" {
		if err := os.WriteFile(name, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
	}
}

func TestMain(m *testing.M) {
	flag.Bool("update", false, "write the golden files anew")
	os.Exit(m.Run())
}

func TestInspectText(t *testing.T) {
	for name, maps := range map[string]bool{"inspect.txt": false, "inspect-maps.txt": true} {
		var b bytes.Buffer
		if err := inspectText(&b, dirtest.Image(t), 4321, maps); err != nil {
			t.Fatal(err)
		}
		golden(t, name, b.Bytes())
	}
}

// TestInspectPacking: codecs are told apart, and pages that are needed twice from
// those that are stored.
func TestInspectPacking(t *testing.T) {
	img := dirtest.Image(t)
	img.Pages = &blob.PageStore{File: "p", Size: 4096 + 1000 + 24, Chunks: []*blob.Chunk{
		{Raw: 4096, Stored: 4096}, {Raw: 8192, Stored: 1000, Codec: blob.Chunk_S2}, {Raw: 8192, Stored: 24, Codec: blob.Chunk_ZSTD},
	}}
	img.MMs[0].Extents = []*blob.Extent{{Pages: 5}, {Pages: 2}}
	img.MMs[1].Extents = nil
	var b bytes.Buffer
	if err := inspectText(&b, img, 1, false); err != nil {
		t.Fatal(err)
	}
	want := "20.0 KiB stored as 5.0 KiB (25 %), raw 4.0 KiB as 4.0 KiB, s2 8.0 KiB as 1000 B, zstd 8.0 KiB as 24 B; " +
		"8.0 KiB more are the same as others\n"
	if !strings.Contains(b.String(), want) {
		t.Errorf("%s\nwant %s", b.String(), want)
	}
}

func TestInspectJSON(t *testing.T) {
	var b bytes.Buffer
	if err := inspectJSON(&b, dirtest.Image(t)); err != nil {
		t.Fatal(err)
	}
	golden(t, "inspect.json", b.Bytes())
	if !json.Valid(b.Bytes()) {
		t.Error("no JSON")
	}
}

// TestInspectDirectory goes the whole way, from a directory.
func TestInspectDirectory(t *testing.T) {
	path := t.TempDir()
	dirtest.Write(t, path)
	for _, args := range [][]string{{"inspect", path}, {"inspect", "--maps", path}, {"inspect", path, "--json"}} {
		f := newFake(t)
		if status := f.do(t, args...); status != 0 || !strings.Contains(f.stdout.String(), "c1") {
			t.Errorf("%q: status %d, %s%s", args, status, f.stdout.String(), f.stderr.String())
		}
	}
}

// TestInspectHostile: what an image says must not reach a terminal as it is, nor
// must a deep tree exhaust the stack.
func TestInspectHostile(t *testing.T) {
	img := dirtest.Image(t)
	img.Container.Id = "\x1b]0;owned\a"
	img.Processes[0].Args = []string{"a\x1b[2J", "b\nc", "\u202e\u009b"}
	img.Files[0].Kind = "\x1b[31m"
	img.MMs[0].Vmas[0].Name = "\r\x1b[K"
	last := img.Processes[1]
	for pid := int32(100); pid < 20000; pid++ {
		p := &blob.Process{Pid: pid, Ppid: last.GetPid()}
		img.Processes = append(img.Processes, p)
		last = p
	}
	var b bytes.Buffer
	if err := inspectText(&b, img, 1, true); err != nil {
		t.Fatal(err)
	}
	for _, r := range b.String() {
		if r != '\n' && !isPrint(r) {
			t.Fatalf("the output has a %q", r)
		}
	}
}

func TestDescribe(t *testing.T) {
	for want, body := range map[string]proto.Message{
		"/a at 7":                      &blob.PathFile{Path: "/a"},
		"/a (deleted) at 7":            &blob.GhostFile{Path: "/a"},
		"memfd:x at 7":                 &blob.MemFD{Name: "x"},
		"stdio 2 of the caller, was n": &blob.External{Index: 2},
		"pipe 5, 3 B waiting":          &blob.Pipe{Inode: 5, Data: []byte("abc")},
		"/fifo":                        &blob.Pipe{Inode: 5, Path: "/fifo"},
		"eventfd, count 9":             &blob.EventFD{Count: 9},
		"signalfd, mask 0x6":           &blob.SignalFD{Mask: 6},
		"timerfd, disarmed":            &blob.TimerFD{},
		"timerfd, due in 1.5s":         &blob.TimerFD{ValueNs: 1_500_000_000},
		"epoll of 1 descriptor":        &blob.EPoll{Entries: []*blob.EPoll_Entry{{}}},
		"unix stream 3 @x, peer 4, 2 B waiting": &blob.UnixSocket{
			Type: 1, Inode: 3, Name: []byte("\x00x"), Peer: 4, Queue: [][]byte{{1}, {2}},
		},
		"unix dgram 3 /s, listening": &blob.UnixSocket{Type: 2, Inode: 3, Name: []byte("/s"), Listening: true},
		"tcp6 [::1]:80, listening": &blob.InetSocket{
			Family: 10, Type: 1, Local: append(make([]byte, 15), 1), LocalPort: 80, Listening: true,
		},
		"udp 127.0.0.1:53 to 10.0.0.1:9": &blob.InetSocket{
			Family: 2, Type: 2, Local: []byte{127, 0, 0, 1}, LocalPort: 53, Remote: []byte{10, 0, 0, 1}, RemotePort: 9,
		},
		"tcp not bound": &blob.InetSocket{Family: 2, Type: 1},
		"n":             nil,
	} {
		if got := describe(&blob.File{Name: "n", Pos: 7}, body); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 1<<20 - 1: "1.0 MiB", 1 << 30: "1.0 GiB",
		1<<64 - 1: "16384.0 PiB",
	} {
		if got := size(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}

// TestProgress: silence for a second, then one line, written anew, and gone at
// the end.
func TestProgress(t *testing.T) {
	var b bytes.Buffer
	now := time.Unix(0, 0)
	p := newProgress(&b)
	p.w, p.now, p.began = &b, func() time.Time { return now }, now
	step := func(d time.Duration, phase string, done int64) {
		now = now.Add(d)
		p.update(cr.Progress{Phase: phase, Done: done, Total: 4 << 20})
	}
	step(0, "memory", 1)
	step(time.Second/2, "memory", 1<<20)
	if b.Len() > 0 {
		t.Errorf("too early: %q", b.String())
	}
	step(time.Second/2, "memory", 2<<20)
	step(time.Millisecond, "memory", 2<<20)
	step(time.Second, "files", 0)
	p.end()
	p.update(cr.Progress{Phase: "late"})
	const want = eraseLine + "memory 2.0 MiB of 4.0 MiB, 2.0 MiB/s, 50 %" + eraseLine + "files" + eraseLine
	if b.String() != want {
		t.Errorf("%q, want %q", b.String(), want)
	}
}
