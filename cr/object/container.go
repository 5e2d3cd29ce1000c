package object

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/procfs"
)

// load looks once at what all descriptions are compared with: the container's
// root, mounts, net namespace and terminals.
func (c *Capture) load() error {
	if c.loaded {
		return nil
	}
	proc := fmt.Sprintf("/proc/%d", c.env.InitPID)
	var err error
	if c.root == nil {
		if c.root, err = os.OpenFile(proc+"/root", unix.O_PATH|unix.O_DIRECTORY, 0); err != nil {
			return err
		}
	}
	if c.mounts, err = mountIDs(proc + "/mountinfo"); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(proc+"/ns/net", &st); err != nil {
		return fmt.Errorf("%s/ns/net: %w", proc, err)
	}
	c.netns = st.Ino
	c.ttys = terminals(proc)
	c.loaded = true
	return nil
}

// mountIDs reads the first field of every line of mountinfo.
func mountIDs(path string) (map[uint64]bool, error) {
	ids := map[uint64]bool{}
	return ids, procfs.Each(path, func(line string) error {
		first, _, _ := strings.Cut(line, " ")
		id, err := strconv.ParseUint(first, 10, 64)
		ids[id] = true
		return err
	})
}

// terminals lists the pseudo-terminals that init has as stdio.
func terminals(proc string) map[uint64]bool {
	ttys := map[uint64]bool{}
	for fd := range 3 {
		var st unix.Statx_t
		err := unix.Statx(unix.AT_FDCWD, fmt.Sprintf("%s/fd/%d", proc, fd), unix.AT_STATX_DONT_SYNC, statxMask, &st)
		if err == nil && st.Mode&unix.S_IFMT == unix.S_IFCHR && isPTS(st.Rdev_major) {
			ttys[unix.Mkdev(st.Rdev_major, st.Rdev_minor)] = true
		}
	}
	return ttys
}

// isPTS: Unix98 pseudo-terminal slaves have majors 136 to 143
// (Documentation/admin-guide/devices.txt).
func isPTS(major uint32) bool { return major >= 136 && major <= 143 }

// stat looks at a path of the container, whose components are no symlinks
// because they come from the kernel.
func (c *Capture) stat(path string) (st unix.Statx_t, err error) {
	err = unix.Statx(int(c.root.Fd()), "./"+path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_STATX_DONT_SYNC, statxMask, &st)
	return st, err
}

// isRoot compares the mount, too: a directory bound onto another path is the same
// inode, and a different root to be in.
func (c *Capture) isRoot(d *Desc) bool {
	st, err := c.stat("")
	return err == nil && same(&st, &d.stat) && st.Mnt_id == d.stat.Mnt_id
}

// same says whether two looks saw one inode. Device numbers are those that stat
// gives, for both sides: overlayfs shows others in /proc/PID/maps.
func same(a, b *unix.Statx_t) bool {
	return a.Ino == b.Ino && a.Dev_major == b.Dev_major && a.Dev_minor == b.Dev_minor
}
