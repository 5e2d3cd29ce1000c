package object

import (
	"context"
	"fmt"
	"path"
	"strings"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/errs"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// A path file is whatever a name in the container leads to and a plain open
// brings back: files, directories, the harmless character devices, and anything
// at all if opened with O_PATH.
func pathFileKind() Kind {
	return Kind{
		Tag: "path", Rev: 1,
		New: func() proto.Message { return &blob.PathFile{} },
		Match: func(_ *Capture, d *Desc) bool {
			return strings.HasPrefix(d.Link, "/") && (d.info.Flags&unix.O_PATH != 0 || plain(d.stat.Mode, d.rdev()))
		},
		Capture: capturePathFile,
		Prepare: preparePathFiles,
		Open:    openPathFile,
	}
}

// plain says whether opening a file of this type has no effect but the
// description: regular files, directories, and of the memory devices null, zero,
// full, random and urandom (Documentation/admin-guide/devices.txt, major 1).
func plain(mode uint16, rdev uint64) bool {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFDIR:
		return true
	case unix.S_IFCHR:
		minor := unix.Minor(rdev)
		return unix.Major(rdev) == 1 && (minor == 3 || minor == 5 || minor >= 7 && minor <= 9)
	}
	return false
}

// capturePathFile keeps size, time and identity beside the path: a restore compares
// the size, and people the rest.
func capturePathFile(_ context.Context, c *Capture, d *Desc) (proto.Message, error) {
	if err := c.named(d); err != nil {
		return nil, err
	}
	return &blob.PathFile{
		Path: d.Link, Mode: uint32(d.stat.Mode), Size: d.stat.Size,
		MtimeNs: nanoseconds(d.stat.Mtime), Rdev: d.rdev(), Dev: d.dev(), Ino: d.stat.Ino,
	}, nil
}

// named makes sure that the link is a path which leads to d, seen from the
// container's root.
func (c *Capture) named(d *Desc) error {
	if !c.mounts[d.stat.Mnt_id] {
		return unsupported("%s was opened outside of the container and is none of its stdio", d.Link)
	}
	st, err := c.stat(d.Link)
	if err == nil && same(&st, &d.stat) {
		return nil
	}
	if p, gone := d.path(); gone {
		return unsupported("%s was deleted, and what it was has no other name to be opened by", p)
	}
	return unsupported("%s is not what that path leads to now: it was replaced or a mount hides it", d.Link)
}

// late says whether a path can only be opened when the tasks are there: those of
// /proc name them.
func late(name string) bool { return strings.HasPrefix(name, "/proc/") }

// preparePathFiles gets hold of every inode with O_PATH, which has no effect on
// it whatever it is. The thread is inside the container.
func preparePathFiles(ctx context.Context, r *Restorer, recs []*record) error {
	root, err := openRoot()
	if err != nil {
		return err
	}
	defer unix.Close(root)
	for _, rec := range recs {
		p := rec.body.(*blob.PathFile)
		if late(p.Path) && !r.tasks || rec.fd >= 0 || rec.handle >= 0 {
			continue
		}
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if err := rec.prepare(root, p); err != nil {
			return rec.wrap(err)
		}
	}
	return nil
}

// prepare opens the path beneath root and checks that it is of the type it was.
func (rec *record) prepare(root int, p *blob.PathFile) error {
	if !path.IsAbs(p.Path) {
		return corrupt("path %q is not absolute", p.Path)
	}
	handle, err := openIn(root, p.Path, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return fmt.Errorf("open %s: %w", p.Path, err)
	}
	rec.handle = handle
	var st unix.Stat_t
	if err := unix.Fstat(handle, &st); err != nil {
		return fmt.Errorf("stat %s: %w", p.Path, err)
	}
	if st.Mode&unix.S_IFMT != p.Mode&unix.S_IFMT || st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev != p.Rdev {
		return fmt.Errorf("%s: %w: it has mode %#o, device %#x; it had %#o, %#x",
			p.Path, errs.ErrHost, st.Mode, st.Rdev, p.Mode, p.Rdev)
	}
	if rec.file.Flags&unix.O_PATH == 0 && !plain(uint16(st.Mode), st.Rdev) {
		return corrupt("%s has mode %#o, device %#x", p.Path, st.Mode, st.Rdev)
	}
	rec.size = st.Size
	if rec.file.Flags&(unix.O_PATH|unix.O_NOFOLLOW) == 0 {
		return nil // openPathFile goes through the handle
	}
	// These flags don't survive that way: O_PATH|O_NOFOLLOW would get the magic
	// link itself, and O_NOFOLLOW refuse it.
	if rec.fd, err = openIn(root, p.Path, rec.file.Flags&openFlags); err != nil {
		return fmt.Errorf("open %s: %w", p.Path, err)
	}
	return nil
}

// dropHandle closes what only led to the description: there may be thousands.
func (rec *record) dropHandle() error {
	fd := rec.handle
	rec.handle = -1
	return unix.Close(fd)
}

// openRoot opens the container's root, for a thread inside.
func openRoot() (int, error) {
	root, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open container root: %w", err)
	}
	return root, nil
}

// openIn opens a path of the container: symbolic links, which an image could
// bring along, don't lead out of root.
func openIn(root int, name string, flags uint32) (int, error) {
	how := unix.OpenHow{
		Flags:   uint64(flags) | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	if flags&unix.O_PATH == 0 {
		how.Flags |= unix.O_NOCTTY
	}
	return unix.Openat2(root, name, &how)
}

// openPathFile opens the inode that prepare got hold of, with the flags of the
// description: nothing can have come in between.
func openPathFile(ctx context.Context, r *Restorer, rec *record) (int, error) {
	if rec.handle < 0 { // it is late
		r.tasks = true
		if err := r.enter(ctx, []*record{rec}); err != nil {
			return -1, err
		}
	}
	fd := rec.fd
	if fd < 0 {
		var err error
		if fd, err = reopen(rec.handle, rec.file.Flags); err != nil {
			return -1, fmt.Errorf("%s: %w", rec.body.(*blob.PathFile).Path, err)
		}
		rec.fd = fd // Close has it should the rest fail
	}
	if err := rec.dropHandle(); err != nil {
		return -1, err
	}
	if rec.file.Flags&unix.O_PATH != 0 {
		return fd, nil
	}
	return fd, seek(fd, rec.file.Pos)
}
