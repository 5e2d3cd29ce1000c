package namespaces

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stasis-cr/stasis/cr/errs"
	"golang.org/x/sys/unix"
)

func TestTreeRoundTrip(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	fillTree(t, from, 3*copyBuffer+1)
	// What the archive does not have must go, whatever it is.
	must(t, os.MkdirAll(to+"/old/deep/er", 0o755))
	must(t, os.WriteFile(to+"/old/deep/er/file", []byte("old"), 0o600))
	must(t, os.WriteFile(to+"/file", []byte("much longer than what comes"), 0o600))
	must(t, os.Symlink("/etc/passwd", to+"/dir"))
	before := snapshot(t, from, true)
	archive := saved(t, from)
	if after := snapshot(t, from, true); !maps.Equal(before, after) {
		t.Errorf("saving changed the tree:\n%s", diff(before, after))
	}
	must(t, restoreTree(t.Context(), open(t, to), bytes.NewReader(archive)))
	if again := saved(t, to); !bytes.Equal(archive, again) { // before reading sets access times
		t.Error("the restored tree makes another archive")
	}
	if got := snapshot(t, to, true); !maps.Equal(before, got) {
		t.Errorf("the restored tree differs:\n%s", diff(before, got))
	}
}

func TestTreeHoles(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	const size = 1 << 34
	f, err := os.OpenFile(from+"/sparse", os.O_RDWR|os.O_CREATE, 0o600)
	must(t, err)
	must(t, f.Truncate(size))
	for _, at := range []int64{1 << 20, 1 << 33, size - 5} {
		_, err = f.WriteAt([]byte("data!"), at)
		must(t, err)
	}
	must(t, f.Close())
	archive := saved(t, from)
	if len(archive) > 1<<20 {
		t.Fatalf("archive has %d bytes: the holes are in it", len(archive))
	}
	must(t, restoreTree(t.Context(), open(t, to), bytes.NewReader(archive)))
	st := status(t, to+"/sparse")
	if st.Size != size || st.Blocks*512 > 1<<20 {
		t.Errorf("restored: size %d, on disk %d", st.Size, st.Blocks*512)
	}
	g := open(t, to+"/sparse")
	for _, at := range []int64{1 << 20, 1 << 33, size - 5} {
		b := make([]byte, 5)
		if _, err := g.ReadAt(b, at); err != nil || string(b) != "data!" {
			t.Errorf("at %d: %q, %v", at, b, err)
		}
	}
}

func TestExtentsAreBounded(t *testing.T) {
	dir := t.TempDir()
	f, err := os.OpenFile(dir+"/comb", os.O_RDWR|os.O_CREATE, 0o600)
	must(t, err)
	defer f.Close()
	const teeth, step = 3 * maxExtents, 2 * 4096
	for i := range int64(teeth) {
		_, err = f.WriteAt([]byte{byte(i) | 1}, i*step)
		must(t, err)
	}
	data, err := extents(f, teeth*step)
	must(t, err)
	if len(data) > maxExtents {
		t.Errorf("%d extents, want at most %d", len(data), maxExtents)
	}
	again, err := parseExtents(formatExtents(data), teeth*step)
	if err != nil || !slices.Equal(again, data) {
		t.Errorf("extents do not survive writing: %v", err)
	}
	to := t.TempDir()
	must(t, f.Truncate(teeth*step))
	must(t, restoreTree(t.Context(), open(t, to), bytes.NewReader(saved(t, dir))))
	if got, want := read(t, to+"/comb"), read(t, dir+"/comb"); got != want {
		t.Error("restored contents differ")
	}
}

// entry is one entry of a hand-made archive.
type entry struct {
	name, link, body string
	kind             byte
	mode             int64
	uid              int
	pax              map[string]string
}

// record is an archive of one file with PAX records.
func record(body string, pairs ...string) []entry {
	pax := make(map[string]string)
	for pair := range slices.Chunk(pairs, 2) {
		pax[pair[0]] = pair[1]
	}
	return []entry{{name: "a", kind: tar.TypeReg, body: body, pax: pax}}
}

func hostile() map[string][]entry {
	link := entry{name: "way", kind: tar.TypeSymlink, link: "../outside"}
	return map[string][]entry{
		"dot dot":            {{name: "../outside/file", kind: tar.TypeReg, body: "x"}},
		"dot dot inside":     {{name: "a/../../outside/file", kind: tar.TypeReg, body: "x"}},
		"absolute":           {{name: "/tmp/stasis-hostile", kind: tar.TypeReg, body: "x"}},
		"empty name":         {{name: "/", kind: tar.TypeDir}},
		"through a link":     {link, {name: "way/file", kind: tar.TypeReg, body: "x"}},
		"dir over a link":    {link, {name: "way", kind: tar.TypeDir, mode: 0o777}},
		"file over a link":   {link, {name: "way", kind: tar.TypeReg, body: "x"}},
		"mkdir through link": {link, {name: "way/dir", kind: tar.TypeDir}},
		"link out":           {{name: "hard", kind: tar.TypeLink, link: "../outside/file"}},
		"link through link":  {link, {name: "hard", kind: tar.TypeLink, link: "way/file"}},
		"link absolute":      {{name: "hard", kind: tar.TypeLink, link: "/etc/passwd"}},
		"link to directory":  {{name: "dir", kind: tar.TypeDir}, {name: "hard", kind: tar.TypeLink, link: "dir"}},
		"no parent":          {{name: "a/b", kind: tar.TypeReg}},
		"file as parent":     {{name: "a", kind: tar.TypeReg}, {name: "a/b", kind: tar.TypeReg}},
		"twice":              {{name: "a", kind: tar.TypeReg}, {name: "a", kind: tar.TypeReg}},
		"directory twice":    {{name: "a", kind: tar.TypeDir}, {name: "a", kind: tar.TypeDir}},
		"root twice":         {{name: ".", kind: tar.TypeDir}, {name: ".", kind: tar.TypeDir}},
		"root as file":       {{name: ".", kind: tar.TypeReg}},
		"contiguous":         {{name: "a", kind: tar.TypeCont}},
		"mode":               {{name: "a", kind: tar.TypeReg, mode: 0o100644}},
		"owner":              {{name: "a", kind: tar.TypeReg, uid: 1<<32 - 1}},
		"security label":     record("", paxXattr+"security.selinux", "x"),
		"size no number":     record("", paxSize, "x"),
		"extents overlap":    record("xxxx", paxSize, "9", paxData, "0,2,1,2"),
		"extents overflow":   record("xx", paxSize, "9", paxData, "9223372036854775807,2"),
		"extents short":      record("xx", paxSize, "9", paxData, "0,3"),
		"extents odd":        record("xx", paxSize, "9", paxData, "0"),
		"size below zero":    record("", paxSize, "-1", paxData, ""),
	}
}

func TestTreeRefuses(t *testing.T) {
	for name, entries := range hostile() {
		t.Run(name, func(t *testing.T) {
			top := arena(t)
			before := snapshot(t, top+"/outside", false)
			err := restoreTree(t.Context(), open(t, top+"/in"), bytes.NewReader(pack(t, entries)))
			if !errors.Is(err, errs.ErrCorrupt) {
				t.Errorf("got %v, want a damaged image", err)
			}
			if after := snapshot(t, top+"/outside", false); !maps.Equal(before, after) {
				t.Errorf("outside changed:\n%s", diff(before, after))
			}
		})
	}
}

func TestTreeRefusesDevice(t *testing.T) {
	dir := t.TempDir()
	archive := pack(t, []entry{{name: "mem", kind: tar.TypeChar}})
	err := restoreTree(t.Context(), open(t, dir), bytes.NewReader(archive))
	if !errors.Is(err, errs.ErrHost) || !strings.Contains(err.Error(), "device mem (0:0)") {
		t.Errorf("got %v, want a refusal that names the device", err)
	}
}

func TestTreeTruncated(t *testing.T) {
	from := t.TempDir()
	must(t, os.WriteFile(from+"/file", bytes.Repeat([]byte("x"), 10000), 0o600))
	archive := saved(t, from)
	err := restoreTree(t.Context(), open(t, t.TempDir()), bytes.NewReader(archive[:len(archive)/2]))
	if !errors.Is(err, errs.ErrCorrupt) {
		t.Errorf("got %v, want a damaged image", err)
	}
}

func TestTreeCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	dir := open(t, t.TempDir())
	if err := saveTree(ctx, dir, &bytes.Buffer{}); !errors.Is(err, context.Canceled) {
		t.Errorf("save: %v", err)
	}
	if err := restoreTree(ctx, dir, &bytes.Buffer{}); !errors.Is(err, context.Canceled) {
		t.Errorf("restore: %v", err)
	}
}

// FuzzRestoreTree unpacks anything: nothing outside may change, and what it
// accepts it can save again.
func FuzzRestoreTree(f *testing.F) {
	for _, entries := range hostile() {
		f.Add(pack(f, entries))
	}
	from := f.TempDir()
	fillTree(f, from, 10)
	f.Add(saved(f, from))
	f.Fuzz(func(t *testing.T, archive []byte) {
		top := arena(t)
		before := snapshot(t, top+"/outside", false)
		err := restoreTree(t.Context(), open(t, top+"/in"), bytes.NewReader(archive))
		if after := snapshot(t, top+"/outside", false); !maps.Equal(before, after) {
			t.Errorf("outside changed:\n%s", diff(before, after))
		}
		if err == nil {
			saved(t, top+"/in")
		}
	})
}

// arena makes a folder to unpack in, "in", beside one that must not change.
func arena(t testing.TB) string {
	t.Helper()
	top := t.TempDir()
	must(t, os.Mkdir(top+"/in", 0o755))
	must(t, os.Mkdir(top+"/outside", 0o755))
	must(t, os.WriteFile(top+"/outside/file", []byte("mine"), 0o644))
	return top
}

// fillTree makes one of everything that needs no privilege.
func fillTree(t testing.TB, dir string, size int) {
	t.Helper()
	must(t, os.MkdirAll(dir+"/dir/sub", 0o755))
	must(t, os.WriteFile(dir+"/dir/sub/file", bytes.Repeat([]byte("c"), size), 0o640))
	must(t, os.WriteFile(dir+"/empty", nil, 0o604))
	must(t, os.WriteFile(dir+"/suid", []byte("x"), 0o755))
	must(t, os.Chmod(dir+"/suid", 0o755|os.ModeSetuid|os.ModeSetgid))
	must(t, os.WriteFile(dir+"/name with\nnewline \xff", []byte("x"), 0o600))
	must(t, os.Mkdir(dir+"/sticky", 0o777))
	must(t, os.Chmod(dir+"/sticky", 0o777|os.ModeSticky))
	must(t, os.Symlink("../no/where", dir+"/dir/link"))
	must(t, unix.Mkfifo(dir+"/fifo", 0o620))
	must(t, os.Link(dir+"/dir/sub/file", dir+"/hard"))
	must(t, os.Link(dir+"/dir/sub/file", dir+"/dir/hard"))
	if err := unix.Setxattr(dir+"/suid", "user.stasis", []byte("a\x01b"), 0); err != nil && !errors.Is(err, unix.ENOTSUP) {
		t.Fatal(err)
	}
	old := time.Unix(1234567890, 123456789)
	for _, name := range []string{"/dir/sub/file", "/dir/sub", "/sticky", "/dir", ""} {
		must(t, os.Chtimes(dir+name, old.Add(time.Hour), old))
	}
}

// snapshot describes everything beneath dir, in words to compare.
func snapshot(t testing.TB, dir string, times bool) map[string]string {
	t.Helper()
	all := make(map[string]string)
	inodes := make(map[uint64]string)
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st := status(t, path)
		name, _ := filepath.Rel(dir, path)
		if inodes[st.Ino] == "" {
			inodes[st.Ino] = name
		}
		s := fmt.Sprintf("%o %d:%d rdev %x first %s", st.Mode, st.Uid, st.Gid, st.Rdev, inodes[st.Ino])
		switch {
		case d.Type().IsRegular():
			s += fmt.Sprintf(" size %d %x", st.Size, hash(read(t, path)))
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			must(t, err)
			s += " to " + target
		}
		f, err := os.OpenFile(path, unix.O_PATH|unix.O_NOFOLLOW, 0)
		must(t, err)
		attrs, err := xattrs(f)
		must(t, errors.Join(err, f.Close()))
		s += fmt.Sprint(attrs)
		if times {
			s += fmt.Sprint(" mtime ", st.Mtim)
		}
		all[name] = s
		return nil
	}))
	return all
}

func hash(s string) (h uint64) {
	for _, c := range []byte(s) {
		h = h*1099511628211 + uint64(c)
	}
	return h
}

func diff(a, b map[string]string) string {
	var out strings.Builder
	names := slices.Sorted(maps.Keys(a))
	for name := range b {
		if _, ok := a[name]; !ok {
			names = append(names, name)
		}
	}
	for _, name := range names {
		if a[name] != b[name] {
			fmt.Fprintf(&out, "%q\n  was %q\n  is  %q\n", name, a[name], b[name])
		}
	}
	return out.String()
}

func saved(t testing.TB, dir string) []byte {
	t.Helper()
	var b bytes.Buffer
	must(t, saveTree(context.Background(), open(t, dir), &b))
	return b.Bytes()
}

// pack writes an archive without any of the checks of saveTree.
func pack(t testing.TB, entries []entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if e.uid == 0 {
			e.uid = os.Getuid()
		}
		if e.kind == tar.TypeDir && e.mode == 0 {
			e.mode = 0o755
		}
		must(t, w.WriteHeader(&tar.Header{
			Name: e.name, Linkname: e.link, Typeflag: e.kind, Mode: e.mode, Size: int64(len(e.body)),
			Uid: e.uid, Gid: os.Getgid(), PAXRecords: e.pax, Format: tar.FormatPAX,
		}))
		_, err := w.Write([]byte(e.body))
		must(t, err)
	}
	must(t, w.Close())
	return b.Bytes()
}

func open(t testing.TB, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	t.Cleanup(func() { must(t, f.Close()) })
	return f
}

func read(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	return string(b)
}

func status(t testing.TB, path string) *unix.Stat_t {
	t.Helper()
	st := new(unix.Stat_t)
	must(t, unix.Lstat(path, st))
	return st
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
