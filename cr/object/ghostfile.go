package object

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"github.com/stasis-cr/stasis/cr/blob"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// A ghost is a regular file that was deleted, or never had a name (O_TMPFILE),
// and lives on in descriptors and mappings. Its bytes go into the image.
func ghostFileKind() Kind {
	return Kind{
		Tag: "ghost", Rev: 1,
		New: func() proto.Message { return &blob.GhostFile{} },
		Match: func(c *Capture, d *Desc) bool {
			return d.is(unix.S_IFREG) && d.stat.Nlink == 0 && strings.HasPrefix(d.Link, "/") && c.mounts[d.stat.Mnt_id]
		},
		Capture: captureGhostFile,
		Prepare: prepareGhostFiles,
		Open:    openGhostFile,
	}
}

// captureGhostFile stores the bytes once for all descriptions and mappings of the
// inode, whichever is met first.
func captureGhostFile(ctx context.Context, c *Capture, d *Desc) (proto.Message, error) {
	was, _ := d.path()
	dir, err := c.livingDir(path.Dir(was), d.stat.Mnt_id)
	if err != nil {
		return nil, err
	}
	n, err := c.inode(ctx, d)
	if err != nil {
		return nil, err
	}
	return &blob.GhostFile{
		Path: path.Join(dir, path.Base(was)), Mode: uint32(d.stat.Mode), Uid: d.stat.Uid, Gid: d.stat.Gid,
		Contents: n.contents, Inode: n.id, AtimeNs: nanoseconds(d.stat.Atime), MtimeNs: nanoseconds(d.stat.Mtime),
	}, nil
}

func nanoseconds(t unix.StatxTimestamp) int64 { return t.Sec*1e9 + int64(t.Nsec) }

// livingDir finds the nearest directory above that still exists on the mount: a
// deleted file can't tell which of its file system's it was in.
func (c *Capture) livingDir(dir string, mount uint64) (string, error) {
	for d := dir; ; d = path.Dir(d) {
		st, err := c.stat(d)
		if err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR && st.Mnt_id == mount {
			return d, nil
		}
		if d == "/" {
			return "", unsupported("a deleted file of %s, of whose mount nothing is reachable", dir)
		}
	}
}

// prepareGhostFiles makes the inodes, empty: they can only be made inside, where
// the directory is.
func prepareGhostFiles(_ context.Context, r *Restorer, recs []*record) error {
	root, err := openRoot()
	if err != nil {
		return err
	}
	defer unix.Close(root)
	for _, rec := range recs {
		g := rec.body.(*blob.GhostFile)
		first := r.ghosts[g.Inode]
		if first == nil {
			first = firstGhost(recs, g.Inode)
			r.ghosts[g.Inode] = first
			if err := makeGhost(root, first); err != nil {
				return first.wrap(err)
			}
		}
	}
	return nil
}

// firstGhost picks the description that made the inode: the one with O_TMPFILE,
// a flag that only the making gives.
func firstGhost(recs []*record, ino uint32) *record {
	var first *record
	for _, rec := range recs {
		if rec.body.(*blob.GhostFile).Inode != ino {
			continue
		}
		if first == nil || isTmpfile(rec.file.Flags) {
			first = rec
		}
	}
	return first
}

// isTmpfile knows a description that open(2) made with O_TMPFILE: the flag stays in
// f_flags, and such a one can always be written.
func isTmpfile(flags uint32) bool {
	return flags&unix.O_TMPFILE == unix.O_TMPFILE && flags&unix.O_ACCMODE != unix.O_RDONLY
}

// makeGhost makes a file that never has a name, so that nothing is left behind
// whatever happens. Unless the program may link it, O_EXCL says it can't be.
func makeGhost(root int, rec *record) error {
	name := rec.body.(*blob.GhostFile).Path
	if !path.IsAbs(name) {
		return corrupt("path %q is not absolute", name)
	}
	flags := uint32(unix.O_TMPFILE | unix.O_RDWR | unix.O_EXCL | oLargeFile)
	if isTmpfile(rec.file.Flags) {
		flags = unix.O_TMPFILE | rec.file.Flags&openFlags&^(unix.O_DIRECT|unix.O_APPEND)
	}
	how := unix.OpenHow{
		Flags: uint64(flags | unix.O_CLOEXEC), Mode: 0o600,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	fd, err := unix.Openat2(root, path.Dir(name), &how)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) {
		fd, err = makeUnlinked(root, path.Dir(name))
	}
	if err != nil {
		return fmt.Errorf("make a file in %s: %w", path.Dir(name), err)
	}
	rec.handle = fd
	return nil
}

// makeUnlinked is for file systems without O_TMPFILE.
func makeUnlinked(root int, dir string) (int, error) {
	at, err := openIn(root, dir, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return -1, err
	}
	defer unix.Close(at)
	name := ".stasis-" + rand.Text()
	fd, err := unix.Openat(at, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return -1, err
	}
	if err := unix.Unlinkat(at, name, 0); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// openGhostFile fills the inode when the first of its descriptions is asked for.
func openGhostFile(ctx context.Context, r *Restorer, rec *record) (int, error) {
	g := rec.body.(*blob.GhostFile)
	n := r.inodes[g.Inode]
	if n == nil {
		var err error
		if n, err = r.fillGhost(ctx, r.ghosts[g.Inode]); err != nil {
			return -1, err
		}
		r.inodes[g.Inode] = n
	}
	if n.tag != rec.kind.Tag {
		return -1, corrupt("inode %d is a %s, too", g.Inode, n.tag)
	}
	if rec.fd < 0 {
		return n.reopen(rec.file)
	}
	return rec.fd, seek(rec.fd, rec.file.Pos) // the one with O_TMPFILE
}

// fillGhost writes the bytes, then the times, which writing changes. A description
// with O_TMPFILE is the very one that made the file: no other way leads to the flag.
func (r *Restorer) fillGhost(ctx context.Context, first *record) (*nameless, error) {
	g := first.body.(*blob.GhostFile)
	fd := first.handle
	first.handle = -1
	f := os.NewFile(uintptr(fd), g.Path)
	defer f.Close() //nolint:errcheck // nothing is buffered, and keep has its own
	if err := r.fill(ctx, f, g.Contents, g.Mode, g.Uid, g.Gid); err != nil {
		return nil, err
	}
	times := []unix.Timespec{unix.NsecToTimespec(g.AtimeNs), unix.NsecToTimespec(g.MtimeNs)}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), times, 0); err != nil {
		return nil, fmt.Errorf("set times: %w", err)
	}
	if isTmpfile(first.file.Flags) {
		var err error
		if first.fd, err = unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0); err != nil {
			return nil, fmt.Errorf("dup: %w", err)
		}
	}
	return r.keep(fd, "ghost")
}
