package namespaces

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"
	"testing"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/errs"
	"golang.org/x/sys/unix"
)

// tmpfsBox starts a box with a tmpfs that only it can see, made to look like a
// container's /dev, and returns its mountpoint and how we get there.
func tmpfsBox(t testing.TB, dir string) (b *box, outside string) {
	t.Helper()
	b = newBox(t, unix.CLONE_NEWNS|unix.CLONE_NEWPID)
	b.run(t, "mount -t tmpfs -o mode=755 stasis "+dir+" && cd "+dir)
	b.run(t, "mkdir pts net gone && mount -t tmpfs other pts && echo kept > pts/inner")
	b.run(t, "mknod -m 666 null c 1 3 && mknod -m 660 net/tun c 10 200 && mknod gone/zero c 1 5")
	return b, fmt.Sprintf("/proc/%d/root%s", b.pid, dir)
}

func TestTmpfs(t *testing.T) {
	dir := t.TempDir()
	from, seen := tmpfsBox(t, dir)
	fillTree(t, seen, 10)
	from.run(t, "chown 1000:1001 "+dir+"/suid && chmod 6755 "+dir+"/suid && chown -h 7:8 "+dir+"/dir/link")
	must(t, unix.Setxattr(seen+"/dir", "trusted.stasis", []byte("v"), 0))
	must(t, unix.Setxattr(seen+"/empty", "security.capability",
		[]byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0))
	from.run(t, "rm -r "+dir+"/gone && chmod 600 "+dir+"/null")
	before := snapshot(t, seen, true)
	ns, _, err := Describe(t.Context(), from.pid)
	must(t, err)
	if !saves(ns, dir) {
		t.Fatalf("%s is not among %v", dir, ns.GetTmpfs())
	}
	var archive bytes.Buffer
	must(t, SaveTmpfs(t.Context(), from.pid, ownAt(t, from.pid, dir), &archive))

	to, seen := tmpfsBox(t, dir)
	to.run(t, "echo old > "+dir+"/extra")
	must(t, RestoreTmpfs(t.Context(), to.pid, dir, &archive))
	if after := snapshot(t, seen, true); !equalBut(before, after, "pts") {
		t.Errorf("restored differs:\n%s", diff(before, after))
	}
	if got := read(t, seen+"/pts/inner"); got != "kept\n" {
		t.Errorf("beneath the other mount: %q", got)
	}
}

// equalBut compares snapshots except for one name and what is beneath: a
// mountpoint's looks are the other mount's.
func equalBut(a, b map[string]string, except string) bool {
	drop := func(name, _ string) bool { return name == except || strings.HasPrefix(name, except+"/") }
	a, b = maps.Clone(a), maps.Clone(b)
	maps.DeleteFunc(a, drop)
	maps.DeleteFunc(b, drop)
	return maps.Equal(a, b)
}

func ownAt(t *testing.T, pid int, mountpoint string) *blob.Mount {
	t.Helper()
	m, err := ownTmpfsAt(pid, mountpoint)
	must(t, err)
	return m
}

func saves(ns *blob.Namespaces, mountpoint string) bool {
	for _, t := range ns.GetTmpfs() {
		if t.GetMountpoint() == mountpoint {
			return true
		}
	}
	return false
}

func TestTmpfsReplacedDevice(t *testing.T) {
	dir := t.TempDir()
	from, seen := tmpfsBox(t, dir)
	from.run(t, "rm null && echo file > null && rm net/tun && rmdir net && echo file > net")
	before := snapshot(t, seen, true)
	var archive bytes.Buffer
	must(t, SaveTmpfs(t.Context(), from.pid, ownAt(t, from.pid, dir), &archive))
	to, seen := tmpfsBox(t, dir)
	must(t, RestoreTmpfs(t.Context(), to.pid, dir, &archive))
	if after := snapshot(t, seen, true); !equalBut(before, after, "pts") {
		t.Errorf("restored differs:\n%s", diff(before, after))
	}
}

func TestTmpfsDeviceOfItsOwn(t *testing.T) {
	dir := t.TempDir()
	from, _ := tmpfsBox(t, dir)
	from.run(t, "mknod sda b 8 0")
	var archive bytes.Buffer
	must(t, SaveTmpfs(t.Context(), from.pid, ownAt(t, from.pid, dir), &archive))
	to, seen := tmpfsBox(t, dir)
	err := RestoreTmpfs(t.Context(), to.pid, dir, &archive)
	if !errors.Is(err, errs.ErrHost) || !strings.Contains(err.Error(), "device sda (8:0)") {
		t.Errorf("got %v, want a refusal of sda", err)
	}
	if _, err := os.Lstat(seen + "/sda"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the device is there: %v", err)
	}
}

func TestTmpfsOfTheHost(t *testing.T) {
	b := newBox(t, unix.CLONE_NEWNS)
	dir := t.TempDir()
	for _, at := range []string{dir, "/"} {
		if err := RestoreTmpfs(t.Context(), b.pid, at, &bytes.Buffer{}); !errors.Is(err, errs.ErrHost) {
			t.Errorf("%s: got %v, want a refusal", at, err)
		}
	}
	b.run(t, "mount -t tmpfs x "+dir)
	own, err := Mounts(os.Getpid())
	must(t, err)
	if own, err = ownTmpfs(own); err != nil || len(own) != 0 {
		t.Errorf("of our own mounts %v were taken for a container's, %v", own, err)
	}
}

func TestTmpfsReadOnly(t *testing.T) {
	b := newBox(t, unix.CLONE_NEWNS)
	dir := t.TempDir()
	b.run(t, "mount -t tmpfs -o ro x "+dir)
	ns, _, err := Describe(t.Context(), b.pid)
	must(t, err)
	if saves(ns, dir) {
		t.Error("a read-only tmpfs is to be saved")
	}
}

func TestTmpfsCovered(t *testing.T) {
	b := newBox(t, unix.CLONE_NEWNS)
	dir := t.TempDir()
	b.run(t, "mount -t tmpfs x "+dir+" && mount -t tmpfs y "+dir)
	if err := SaveTmpfs(t.Context(), b.pid, ownAt(t, b.pid, dir), &bytes.Buffer{}); !errors.Is(err, errs.ErrUnsupported) {
		t.Errorf("got %v, want a refusal", err)
	}
}

func TestTmpfsLoses(t *testing.T) {
	b := newBox(t, unix.CLONE_NEWNS)
	dir := t.TempDir()
	b.run(t, "mount -t tmpfs x "+dir+" && mkdir "+dir+"/a /tmp/stasis-part-$$ && mount --bind "+dir+"/a "+
		"/tmp/stasis-part-$$ && umount "+dir)
	t.Cleanup(func() { must(t, os.Remove(fmt.Sprintf("/tmp/stasis-part-%d", b.pid))) })
	now, err := Mounts(b.pid)
	must(t, err)
	if got := checkTmpfs(now); len(got) != 1 || !strings.Contains(got[0].Error(), "stasis-part") {
		t.Errorf("got %v, want one refusal", got)
	}
}
