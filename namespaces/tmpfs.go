package namespaces

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/errs"
	"golang.org/x/sys/unix"
)

// ownTmpfs picks those of a container's mounts, as [Mounts] lists them, whose
// contents live and die with the container: tmpfs, whole, not mounted in our own
// mount namespace as well (that is the host's, bind mounted), and writable. One
// that is read-only everywhere is as the OCI runtime filled it, and will be
// filled so again; and so will one beneath /proc or /sys, such as the one that
// holds the mountpoints of cgroup v1. Each file system is named once.
func ownTmpfs(mounts []*blob.Mount) ([]*blob.Mount, error) {
	ours, err := Mounts(os.Getpid())
	if err != nil {
		return nil, err
	}
	seen := make(map[device]bool)
	for _, m := range ours {
		seen[deviceOf(m)] = true
	}
	var own []*blob.Mount
	for _, m := range mounts {
		if m.GetFstype() == "tmpfs" && m.GetRoot() == "/" && writable(m) &&
			!seen[deviceOf(m)] && !kernels(m.GetMountpoint(), mounts) {
			seen[deviceOf(m)] = true
			own = append(own, m)
		}
	}
	return own, nil
}

// device is the number of a file system, as stat(2) and mountinfo give it.
type device struct{ major, minor uint32 }

func deviceOf(m *blob.Mount) device { return device{m.GetMajor(), m.GetMinor()} }

// writable reports whether neither the mount nor its superblock is read-only.
func writable(m *blob.Mount) bool {
	for options := range strings.SplitSeq(m.GetOptions(), ";") {
		if slices.Contains(strings.Split(options, ","), "ro") {
			return false
		}
	}
	return true
}

// checkTmpfs names the mounts whose contents would be lost: a part of a tmpfs
// that is nowhere mounted whole, and file systems in memory of other kinds.
func checkTmpfs(mounts []*blob.Mount) (refused []error) {
	ours, err := Mounts(os.Getpid())
	if err != nil {
		return []error{err}
	}
	safe := make(map[device]bool)
	for _, m := range ours {
		safe[deviceOf(m)] = true
	}
	for _, m := range mounts {
		if m.GetRoot() == "/" && m.GetFstype() == "tmpfs" {
			safe[deviceOf(m)] = true
		}
	}
	for _, m := range mounts {
		inMemory := slices.Contains([]string{"tmpfs", "ramfs", "hugetlbfs"}, m.GetFstype())
		if inMemory && writable(m) && !safe[deviceOf(m)] {
			refused = append(refused, fmt.Errorf("mount %s (%s): its contents can't be saved: %w",
				m.GetMountpoint(), m.GetFstype(), errs.ErrUnsupported))
		}
	}
	return refused
}

// SaveTmpfs writes the tree of one tmpfs of the container that the task pid is
// in to w, as a tar archive (PAX): directories, regular files, symbolic and hard
// links, FIFOs and device nodes with owner, mode, times and extended attributes.
// Holes are neither read nor written. Sockets are left out, because binding makes
// them anew, and so is what other mounts cover. It only looks, and holds no more
// of a file in memory than a buffer. The mount is one that [Describe] returned.
//
// Precondition: nothing in the container runs; a file that shrinks while it is
// read is an error.
func SaveTmpfs(ctx context.Context, pid int, m *blob.Mount, w io.Writer) error {
	err := inTmpfs(pid, m, func(root *os.File) error { return saveTree(ctx, root, w) })
	return wrapTmpfs("save", m.GetMountpoint(), err)
}

// RestoreTmpfs makes the tree of one tmpfs of the container that the task pid is
// in equal to an archive of [SaveTmpfs]: what the archive lacks is removed. The
// container must have a writable tmpfs of its own at the mountpoint.
//
// The archive may be anybody's: it reaches nothing outside that tmpfs, nothing
// beneath other mounts and makes no device node. A damaged or hostile one is an
// error that wraps [errs.ErrCorrupt]; the tree is then half made, and the
// container is to be thrown away.
//
// Precondition: no program of the container runs yet.
func RestoreTmpfs(ctx context.Context, pid int, mountpoint string, r io.Reader) error {
	m, err := ownTmpfsAt(pid, mountpoint)
	if err == nil {
		err = inTmpfs(pid, m, func(root *os.File) error {
			return onThread(func() error {
				if err := actAsRoot(pid); err != nil {
					return err
				}
				return restoreTree(ctx, root, r)
			})
		})
	}
	return wrapTmpfs("restore", mountpoint, err)
}

func wrapTmpfs(op, mountpoint string, err error) error {
	if err == nil {
		return nil
	}
	return &errs.Error{Op: op, Obj: errs.Name("tmpfs " + mountpoint), Err: err}
}

// inTmpfs runs f with the root of a tmpfs of the container.
func inTmpfs(pid int, m *blob.Mount, f func(root *os.File) error) error {
	root, err := openTmpfs(pid, m)
	if err != nil {
		return err
	}
	return errors.Join(f(root), root.Close())
}

// ownTmpfsAt finds the container's own tmpfs at a mountpoint. The name is an
// image's: it must not lead to a tmpfs of the host.
func ownTmpfsAt(pid int, mountpoint string) (*blob.Mount, error) {
	mounts, err := Mounts(pid)
	if err != nil {
		return nil, err
	}
	own, err := ownTmpfs(mounts)
	if err != nil {
		return nil, err
	}
	for _, m := range own {
		if m.GetMountpoint() == mountpoint {
			return m, nil
		}
	}
	return nil, fmt.Errorf("this container has no writable tmpfs of its own there: %w", errs.ErrHost)
}

// openTmpfs opens the root directory of a tmpfs through the container's root and
// makes sure that no other mount covers it.
func openTmpfs(pid int, m *blob.Mount) (*os.File, error) {
	top, err := openRoot(pid)
	if err != nil {
		return nil, err
	}
	defer top.Close() //nolint:errcheck // an O_PATH descriptor has nothing to flush
	root, err := openIn(top, m.GetMountpoint(), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOATIME)
	if err != nil {
		return nil, err
	}
	var fs unix.Statfs_t
	var st unix.Stat_t
	err = errors.Join(unix.Fstatfs(int(root.Fd()), &fs), unix.Fstat(int(root.Fd()), &st))
	if err == nil && (fs.Type != unix.TMPFS_MAGIC || (device{unix.Major(st.Dev), unix.Minor(st.Dev)}) != deviceOf(m)) {
		err = fmt.Errorf("another mount covers it: %w", errs.ErrUnsupported)
	}
	if err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return root, nil
}
