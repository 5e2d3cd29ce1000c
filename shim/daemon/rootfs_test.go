package daemon

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"
)

// needRoot ends a test that has to mount, or to make devices and owners.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("needs root, to mount overlays and to make devices")
	}
	t.Skip("needs root, to mount overlays and to make devices")
}

// put makes a file with its directories; a name that ends in a slash is a
// directory.
func put(t *testing.T, root, name, content string) {
	t.Helper()
	full := filepath.Join(root, name)
	must(t, os.MkdirAll(filepath.Dir(full), 0o755))
	if strings.HasSuffix(name, "/") {
		must(t, os.MkdirAll(full, 0o755))
		return
	}
	must(t, os.WriteFile(full, []byte(content), 0o644))
}

// image makes a directory with the files of an image, as old as those are.
func image(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o755))
	for name, content := range map[string]string{
		"etc/passwd": "root", "etc/hosts": "localhost", "bin/sh": "program", "lib/a/b/c": "deep",
		"var/log/old": "log", "var/empty/": "", "opt/tool/one": "1", "opt/tool/two": "2", "tmp/": "",
	} {
		put(t, dir, name, content)
	}
	must(t, os.Link(dir+"/bin/sh", dir+"/bin/ls"))
	must(t, os.Symlink("sh", dir+"/bin/ash"))
	old := time.Unix(1_000_000_000, 0)
	must(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		ts := []unix.Timespec{unix.NsecToTimespec(old.UnixNano()), unix.NsecToTimespec(old.UnixNano())}
		return unix.UtimesNanoAt(unix.AT_FDCWD, path, ts, unix.AT_SYMLINK_NOFOLLOW)
	}))
	return dir
}

// duplicate copies a directory with all attributes.
func duplicate(t *testing.T, dir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	if out, err := exec.Command("cp", "-a", dir, to).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
	return to
}

// overlay mounts one over a directory until the test ends.
func overlay(t *testing.T, lower string) (merged, upper string) {
	t.Helper()
	dir := t.TempDir()
	merged, upper = filepath.Join(dir, "merged"), filepath.Join(dir, "upper")
	work := filepath.Join(dir, "work")
	for _, d := range []string{merged, upper, work} {
		must(t, os.Mkdir(d, 0o755))
	}
	m := mount.Mount{Type: "overlay", Source: "overlay", Options: []string{
		"index=off", "redirect_dir=off", "metacopy=off", "lowerdir=" + lower, "upperdir=" + upper, "workdir=" + work,
	}}
	must(t, m.Mount(merged))
	t.Cleanup(func() { must(t, mount.UnmountAll(merged, 0)) })
	return merged, upper
}

// side is a container's files, and how they are read.
type side struct {
	root    string // what the container sees
	read    string // what is walked
	base    string
	overlay bool
}

// sides are the ways to keep a container's files.
var sides = map[string]func(t *testing.T, image string) side{
	"upper": func(t *testing.T, image string) side {
		merged, upper := overlay(t, image)
		return side{root: merged, read: upper, overlay: true}
	},
	"merged": func(t *testing.T, image string) side {
		merged, _ := overlay(t, image)
		return side{root: merged, read: merged, base: image}
	},
	"copy": func(t *testing.T, image string) side {
		dir := duplicate(t, image)
		return side{root: dir, read: dir, base: image}
	},
}

// send writes the layer, applies it to the other sides and compares.
func (s *side) send(t *testing.T, sent *tree, to ...string) []string {
	t.Helper()
	var buf bytes.Buffer
	base := s.base
	if sent.root != nil {
		base = ""
	}
	must(t, sent.write(t.Context(), &buf, s.read, base, s.overlay))
	names := entries(t, buf.Bytes())
	for _, dir := range to {
		must(t, apply(t.Context(), dir, bytes.NewReader(buf.Bytes())))
		if diff := differences(t, s.root, dir); diff != "" {
			t.Fatalf("%s:\n%slayer: %q", filepath.Base(dir), diff, names)
		}
	}
	return names
}

func entries(t *testing.T, layer []byte) []string {
	t.Helper()
	var names []string
	for r := tar.NewReader(bytes.NewReader(layer)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return names
		}
		must(t, err)
		names = append(names, h.Name)
	}
}

// differences compares trees: all that a container sees, but sockets.
func differences(t *testing.T, a, b string) string {
	t.Helper()
	x, y := listing(t, a), listing(t, b)
	var out strings.Builder
	for _, name := range slices.Sorted(maps.Keys(x)) {
		if x[name] != y[name] {
			fmt.Fprintf(&out, "%s: %s, there %s\n", name, x[name], y[name])
		}
	}
	for name := range y {
		if x[name] == "" {
			fmt.Fprintf(&out, "%s: gone, there %s\n", name, y[name])
		}
	}
	return out.String()
}

func listing(t *testing.T, root string) map[string]string {
	t.Helper()
	all, links := map[string]string{}, map[uint64][]string{}
	must(t, filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil || st.Mode&unix.S_IFMT == unix.S_IFSOCK {
			return err
		}
		line := fmt.Sprintf("mode %o owner %d:%d dev %x mtime %d", st.Mode, st.Uid, st.Gid, st.Rdev, st.Mtim.Nano())
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %q", b)
		case unix.S_IFLNK:
			link, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " -> " + link
		}
		if st.Mode&unix.S_IFMT != unix.S_IFLNK {
			x, err := xattrs(path)
			if err != nil {
				return err
			}
			line += fmt.Sprint(" ", x)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Nlink > 1 {
			links[st.Ino] = append(links[st.Ino], name)
		}
		all[name] = line
		return nil
	}))
	for _, names := range links {
		if len(names) < 2 {
			continue // a lower layer's file, whose other names are hidden
		}
		for _, name := range names {
			all[name] += fmt.Sprintf(" is %q", names)
		}
	}
	return all
}

// firstChanges are those before the first layer, with all kinds of files.
func firstChanges(t *testing.T, root string) {
	t.Helper()
	put(t, root, "etc/hosts", "10.0.0.1 me")
	put(t, root, "data/new/file", "content")
	must(t, os.Chmod(root+"/data/new/file", 0o4751))
	must(t, os.Chown(root+"/data/new/file", 1000, 1001))
	must(t, os.Chmod(root+"/data/new/file", 0o4751))
	must(t, unix.Setxattr(root+"/data/new/file", "user.note", []byte("a\x00b"), 0))
	must(t, unix.Setxattr(root+"/data/new", "user.dir", []byte("d"), 0))
	must(t, unix.Setxattr(root, "user.root", []byte("r"), 0))
	must(t, os.Link(root+"/data/new/file", root+"/data/link"))
	must(t, os.Symlink("/etc/hosts", root+"/data/symlink"))
	must(t, os.Lchown(root+"/data/symlink", 5, 6))
	must(t, unix.Mknod(root+"/data/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(t, unix.Mknod(root+"/data/loop", unix.S_IFBLK|0o660, int(unix.Mkdev(7, 0))))
	must(t, unix.Mkfifo(root+"/data/fifo", 0o600))
	must(t, unix.Mknod(root+"/data/socket", unix.S_IFSOCK|0o600, 0))
	must(t, os.Remove(root+"/etc/passwd"))
	must(t, os.RemoveAll(root+"/opt/tool"))
	put(t, root, "opt/tool/three", "3") // opaque in an overlay
	must(t, os.RemoveAll(root+"/var/log"))
	put(t, root, "var/log", "a file now")
	must(t, os.Remove(root+"/bin/ash"))
	put(t, root, "bin/ash/dir", "a directory now")
	must(t, os.Chmod(root+"/tmp", 0o1777))
	must(t, os.Chmod(root, 0o711))
	put(t, root, strings.Repeat("long/", 60)+"name", strings.Repeat("x", 3<<20))
}

// laterChanges undo and redo what an earlier layer had.
func laterChanges(t *testing.T, root string) {
	t.Helper()
	put(t, root, "etc/hosts", "10.0.0.2 me")
	must(t, os.Remove(root+"/data/link"))
	must(t, os.Remove(root+"/data/null"))
	put(t, root, "data/null", "a file")
	must(t, os.RemoveAll(root+"/opt/tool"))
	put(t, root, "opt/tool/four", "4")
	put(t, root, "etc/passwd", "root again")
	must(t, os.Remove(root+"/var/log"))
	put(t, root, "var/log/again", "a directory")
	must(t, os.RemoveAll(root+"/bin/ash"))
	must(t, os.Rename(root+"/data/new", root+"/data/renamed"))
	put(t, root, "data/new/other", "in place of another")
	must(t, os.Remove(root+"/lib/a/b/c"))
	must(t, unix.Removexattr(root+"/data/renamed", "user.dir"))
	must(t, unix.Removexattr(root, "user.root"))
	must(t, os.Chmod(root+"/tmp", 0o700))
	put(t, root, "data/socket2", "")
	must(t, os.Remove(root+"/data/socket2"))
	must(t, os.Remove(root+"/data/fifo"))
	must(t, unix.Mknod(root+"/data/fifo", unix.S_IFSOCK|0o600, 0))
}

func TestLayers(t *testing.T) {
	needRoot(t)
	for name, newSide := range sides {
		t.Run(name, func(t *testing.T) {
			lower := image(t)
			s, sent := newSide(t, lower), &tree{}
			over, _ := overlay(t, lower)
			to := []string{duplicate(t, lower), over}
			s.send(t, sent, to...)
			firstChanges(t, s.root)
			s.send(t, sent, to...)
			laterChanges(t, s.root)
			s.send(t, sent, to...)
			firstChangesAgain(t, s.root)
			s.send(t, sent, to...)
		})
	}
}

// firstChangesAgain makes the first ones on top of the later ones.
func firstChangesAgain(t *testing.T, root string) {
	t.Helper()
	for _, name := range []string{"data", "bin/ash", "var/log"} {
		must(t, os.RemoveAll(filepath.Join(root, name)))
	}
	must(t, os.Symlink("sh", root+"/bin/ash"))
	put(t, root, "var/log/x", "")
	firstChanges(t, root)
}

// TestLayersRandom makes many changes of few names, with a layer now and then.
func TestLayersRandom(t *testing.T) {
	needRoot(t)
	for name, newSide := range sides {
		t.Run(name, func(t *testing.T) {
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			r := rand.New(rand.NewPCG(seed, 0))
			lower := image(t)
			s, sent, to := newSide(t, lower), &tree{}, duplicate(t, lower)
			for range 40 {
				for range 1 + r.IntN(12) {
					randomChange(t, r, s.root)
				}
				s.send(t, sent, to)
			}
		})
	}
}

// randomChange does something that may fail, as names are taken at random.
func randomChange(t *testing.T, r *rand.Rand, root string) {
	t.Helper()
	pick := func() string {
		name := root
		for range 1 + r.IntN(3) {
			name = filepath.Join(name, []string{"opt", "tool", "bin", "sh", "x", "y"}[r.IntN(6)])
		}
		return name
	}
	a, b := pick(), pick()
	switch r.IntN(9) {
	case 0, 1, 2:
		_ = os.WriteFile(a, fmt.Append(nil, r.Uint32()), 0o644)
	case 3, 4:
		_ = os.Mkdir(a, 0o755)
	case 5:
		_ = os.RemoveAll(a)
	case 6:
		_ = os.Rename(a, b)
	case 7:
		_ = os.Link(a, b)
	case 8:
		_ = os.Chmod(a, 0o700|fs.FileMode(r.IntN(64)))
	}
}

// later is a clock by which nothing has changed just now.
func later() time.Time { return time.Now().Add(time.Hour) }

func TestLayerOfNoChange(t *testing.T) {
	needRoot(t)
	for name, newSide := range sides {
		t.Run(name, func(t *testing.T) {
			lower := image(t)
			s, sent, to := newSide(t, lower), &tree{now: later}, duplicate(t, lower)
			firstChanges(t, s.root)
			s.send(t, sent, to)
			if names := s.send(t, sent, to); len(names) != 0 {
				t.Errorf("a second layer has %q", names)
			}
			put(t, s.root, "etc/hosts", "of another size altogether")
			must(t, os.Remove(s.root+"/data/fifo"))
			names := s.send(t, sent, to)
			if want := []string{"data/", "data/.wh.fifo", "etc/", "etc/hosts"}; !slices.Equal(names, want) {
				t.Errorf("a third layer has %q, want %q", names, want)
			}
			// What was sent while there was no time to have it written back is sent again.
			if names := s.send(t, sent, to); !slices.Equal(names, []string{"etc/", "etc/hosts"}) {
				t.Errorf("a fourth layer has %q", names)
			}
		})
	}
}

// TestRecentChange changes a file within the tick of its last change, which may
// leave no trace in its times.
func TestRecentChange(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, "f", "one")
	sent := &tree{}
	must(t, sent.write(t.Context(), io.Discard, dir, "", false))
	var buf bytes.Buffer
	must(t, sent.write(t.Context(), &buf, dir, "", false))
	if names := entries(t, buf.Bytes()); !slices.Contains(names, "f") {
		t.Errorf("the second layer has %q, without a file that has just changed", names)
	}
}

// TestMappedWrite writes through a mapping that was written through before the
// first layer.
func TestMappedWrite(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, "f", strings.Repeat("a", 4096))
	f, err := os.OpenFile(dir+"/f", os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	var sb unix.Statfs_t
	must(t, unix.Fstatfs(int(f.Fd()), &sb))
	if sb.Type == unix.TMPFS_MAGIC {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs a temporary directory on a disk: a tmpfs does not see writes through mappings")
		}
		t.Skip("needs a temporary directory on a disk: a tmpfs does not see writes through mappings")
	}
	m, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	defer func() { must(t, unix.Munmap(m)) }()
	m[0] = 'b'
	sent := &tree{now: later}
	must(t, sent.write(t.Context(), io.Discard, dir, "", false))
	m[1] = 'b'
	var buf bytes.Buffer
	must(t, sent.write(t.Context(), &buf, dir, "", false))
	if names := entries(t, buf.Bytes()); !slices.Contains(names, "f") {
		t.Errorf("the second layer has %q, without the file that was written to", names)
	}
}

// TestCopyOfShortFile copies one that is shorter than it was.
func TestCopyOfShortFile(t *testing.T) {
	var buf bytes.Buffer
	l := newLayer(&buf)
	size := int64(2*copySize + 7)
	must(t, l.tw.WriteHeader(&tar.Header{Name: "f", Typeflag: tar.TypeReg, Size: size}))
	short, err := l.copy(t.Context(), strings.NewReader(strings.Repeat("x", copySize+1)), size)
	if !short || err != nil {
		t.Errorf("short %t, %v", short, err)
	}
	must(t, l.Close())
	r := tar.NewReader(&buf)
	_, err = r.Next()
	must(t, err)
	b, err := io.ReadAll(r)
	if want := copySize + 1; int64(len(b)) != size || strings.Count(string(b), "x") != want || err != nil {
		t.Errorf("%d bytes, %d of them from the file, %v", len(b), strings.Count(string(b), "x"), err)
	}
	if short, err := l.copy(t.Context(), strings.NewReader("long"), 0); short || err != nil {
		t.Errorf("a file that grew: short %t, %v", short, err)
	}
}

// TestLayersOfBusyTree writes layers while files come and go: no layer may fail,
// and the last one, without company, must make good for all.
func TestLayersOfBusyTree(t *testing.T) {
	needRoot(t)
	lower := image(t)
	s, sent, to := sides["upper"](t, lower), &tree{}, duplicate(t, lower)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for r := rand.New(rand.NewPCG(1, 2)); ctx.Err() == nil; {
			randomChange(t, r, s.root)
		}
	}()
	for range 100 {
		var buf bytes.Buffer
		must(t, sent.write(t.Context(), &buf, s.read, "", true))
		must(t, apply(t.Context(), to, &buf))
	}
	stop()
	<-done
	s.send(t, sent, to)
}

func TestLayerRefuses(t *testing.T) {
	for name, file := range map[string]string{
		"whiteout": "a/.wh.b",
		"path":     strings.Repeat("long", 10),
	} {
		dir := t.TempDir()
		if name == "path" { // too long to be made in one go
			deep(t, dir, strings.Repeat("d", 240), maxPath/240+1)
		} else {
			put(t, dir, file, "")
		}
		err := (&tree{}).write(t.Context(), io.Discard, dir, "", false)
		if err == nil || strings.Count(err.Error(), ": ") != 2 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// deep makes a directory in a directory, and so on.
func deep(t *testing.T, dir, name string, levels int) {
	t.Helper()
	r, err := os.OpenRoot(dir)
	must(t, err)
	for range levels {
		must(t, r.Mkdir(name, 0o700))
		sub, err := r.OpenRoot(name)
		must(t, err)
		must(t, r.Close())
		r = sub
	}
	must(t, r.Close())
}

func TestLayerEndsWithContext(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, "f", "")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := (&tree{}).write(ctx, io.Discard, dir, "", false); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want %v", err, context.Canceled)
	}
}

// TestApplyStaysInside applies layers that aim outside the directory.
func TestApplyStaysInside(t *testing.T) {
	needRoot(t)
	for name, list := range map[string][]tar.Header{
		"dots":    {{Name: "../escaped", Typeflag: tar.TypeReg}},
		"symlink": {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: ".."}, {Name: "l/escaped", Typeflag: tar.TypeReg}},
		"root":    {{Name: ".", Typeflag: tar.TypeSymlink, Linkname: "/"}},
	} {
		dir := filepath.Join(t.TempDir(), "root")
		must(t, os.Mkdir(dir, 0o755))
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		for _, h := range list {
			must(t, w.WriteHeader(&h))
		}
		must(t, w.Close())
		err := apply(t.Context(), dir, &buf)
		if _, e := os.Lstat(filepath.Join(dir, "..", "escaped")); e == nil {
			t.Errorf("%s: left the directory, %v", name, err)
		}
		if name == "root" && err == nil {
			t.Error("the root directory became a link")
		}
	}
}

func TestUpperDir(t *testing.T) {
	plain := []string{"workdir=/w", "upperdir=/u", "lowerdir=/l"}
	off := []string{"redirect_dir=off", "metacopy=off"}
	for _, tc := range []struct {
		name string
		in   []mount.Mount
		want string
	}{
		{"overlay", []mount.Mount{{Type: "overlay", Options: slices.Concat(plain, off)}}, "/u"},
		{"view", []mount.Mount{{Type: "overlay", Options: []string{"lowerdir=/l:/m"}}}, ""},
		{"redirects", []mount.Mount{{Type: "overlay", Options: slices.Concat(plain, []string{"redirect_dir=on", "metacopy=off"})}}, ""},
		{"metacopy", []mount.Mount{{Type: "overlay", Options: slices.Concat(plain, []string{"redirect_dir=off", "metacopy=on"})}}, ""},
		{"mapped", []mount.Mount{{Type: "overlay", Options: slices.Concat(plain, off, []string{"uidmap=0:1000:10"})}}, ""},
		{"bind", []mount.Mount{{Type: "bind", Source: "/s"}}, ""},
		{"two", make([]mount.Mount, 2), ""},
	} {
		if got, ok := upperDir(tc.in); got != tc.want || ok != (tc.want != "") {
			t.Errorf("%s: %q, %t; want %q", tc.name, got, ok, tc.want)
		}
	}
}
