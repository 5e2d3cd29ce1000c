package namespaces

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/errs"
	"golang.org/x/sys/unix"
)

// mounted makes records of "mountpoint type" pairs.
func mounted(pairs ...string) (mounts []*blob.Mount) {
	for _, p := range pairs {
		at, fstype, _ := strings.Cut(p, " ")
		mounts = append(mounts, &blob.Mount{Mountpoint: at, Fstype: fstype, Root: "/"})
	}
	return mounts
}

func dockerSpec() *specs.Spec {
	return &specs.Spec{
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc"},
			{Destination: "/dev", Type: "tmpfs"},
			{Destination: "/dev/pts", Type: "devpts"},
			{Destination: "/dev/shm", Type: "tmpfs"},
			{Destination: "/sys", Type: "sysfs"},
			{Destination: "/sys/fs/cgroup", Type: "cgroup"},
			{Destination: "/data/", Type: "bind", Options: []string{"rbind", "rw"}},
			{Destination: "/one", Type: "bind", Options: []string{"bind", "rw"}},
		},
		Linux: &specs.Linux{
			MaskedPaths:   []string{"/proc/kcore", "/proc/acpi"},
			ReadonlyPaths: []string{"/proc/sys"},
		},
	}
}

func TestExtraMounts(t *testing.T) {
	explained := []string{
		"/ overlay", "/proc proc", "/dev tmpfs", "/dev/pts devpts", "/dev/shm tmpfs", "/sys sysfs",
		"/sys/fs/cgroup tmpfs", "/sys/fs/cgroup/memory cgroup", "/data ext4", "/data/deep/er xfs", "/one ext4",
		"/proc/kcore tmpfs", "/proc/acpi tmpfs", "/proc/sys proc", "/dev/console devpts",
	}
	for _, c := range []struct {
		name  string
		extra []string
		want  []string
	}{
		{"all explained", nil, nil},
		{"made inside", []string{"/mnt ext4"}, []string{"/mnt (ext4)"}},
		{"beneath a bind", []string{"/one/sub ext4"}, []string{"/one/sub (ext4)"}},
		{"on top", []string{"/dev/shm tmpfs"}, []string{"/dev/shm (tmpfs)"}},
		{"on the root", []string{"/ tmpfs"}, []string{"/ (tmpfs)"}},
		{"name with the same start", []string{"/database ext4"}, []string{"/database (ext4)"}},
		{"several", []string{"/a ext4", "/b xfs"}, []string{"/a (ext4)", "/b (xfs)"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := ExtraMounts(os.Getpid(), mounted(slices.Concat(explained, c.extra)...), dockerSpec())
			if len(got) != len(c.want) {
				t.Fatalf("got %v, want %d", got, len(c.want))
			}
			for i, err := range got {
				if !errors.Is(err, errs.ErrUnsupported) || !strings.Contains(err.Error(), "mount "+c.want[i]+" was made inside") {
					t.Errorf("got %v, want one about %s", err, c.want[i])
				}
			}
		})
	}
}

func TestExtraMountsOfAnotherType(t *testing.T) {
	got := ExtraMounts(os.Getpid(), mounted("/proc proc", "/dev/shm ext4"), dockerSpec())
	if len(got) != 1 || !strings.Contains(got[0].Error(), "/dev/shm (ext4)") {
		t.Errorf("got %v, want one about /dev/shm", got)
	}
}

func TestExtraMountsThroughLink(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Mkdir(dir+"/run", 0o755))
	must(t, os.Symlink(dir+"/run", dir+"/var-run"))
	spec := &specs.Spec{Mounts: []specs.Mount{{Destination: dir + "/var-run", Type: "bind"}}}
	if got := ExtraMounts(os.Getpid(), mounted(dir+"/run ext4"), spec); len(got) != 0 {
		t.Errorf("got %v, want none", got)
	}
}

func TestMissing(t *testing.T) {
	was := mounted("/ overlay", "/proc proc", "/proc/acpi tmpfs", "/sys sysfs", "/sys/fs/cgroup/rdma cgroup", "/data ext4")
	got := Missing(was, mounted("/ overlay", "/proc proc", "/sys sysfs"))
	if len(got) != 1 || !errors.Is(got[0], errs.ErrHost) || !strings.Contains(got[0].Error(), "/data (ext4)") {
		t.Errorf("got %v, want one about /data", got)
	}
	if got := Missing(was, was); len(got) != 0 {
		t.Errorf("got %v of the same mounts, want none", got)
	}
}

func TestMounts(t *testing.T) {
	b := newBox(t, unix.CLONE_NEWNS)
	dir := t.TempDir()
	b.run(t, "mkdir '"+dir+"/with space' && mount -t tmpfs -o nosuid,size=1m x '"+dir+"/with space'")
	mounts, err := Mounts(b.pid)
	must(t, err)
	m := mounts[len(mounts)-1]
	if m.GetMountpoint() != dir+"/with space" || m.GetFstype() != "tmpfs" || !strings.Contains(m.GetOptions(), "nosuid") ||
		!strings.Contains(m.GetOptions(), "size=1024k") {
		t.Errorf("got %v", m)
	}
}
