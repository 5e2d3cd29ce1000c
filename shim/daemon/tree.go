package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// coarse bounds how far a file's time of change may be behind the clock: the
	// kernel takes it from the last tick.
	coarse = 100 * time.Millisecond
	// maxPath bounds the paths that the other side can apply, in bytes: it has a
	// temporary directory before them.
	maxPath = unix.PathMax - 256

	whiteoutPrefix = ".wh."            // of a name that is not there any more
	opaqueName     = ".wh..wh..opq"    // in a directory that has nothing of before
	overlayXattr   = "trusted.overlay" // where an overlay marks such a directory
	overlayUser    = "user.overlay"    // likewise, without privileges
)

// tree is what the other side has of a directory, as far as it was written here.
type tree struct {
	root *node            // nil before the first time
	now  func() time.Time // nil: the clock
}

func (t *tree) time() time.Time {
	if t.now == nil {
		return time.Now()
	}
	return t.now()
}

// node is what was seen at a path, the last time.
type node struct {
	stamp
	nothing bool             // the other side has nothing there: a deletion was written, or it is a socket
	opaque  bool             // a directory that hides the one of the layers below
	unsure  bool             // may have changed without its stamp telling
	kids    map[string]*node // of a directory
}

// stamp changes whenever a file does.
type stamp struct {
	mode, uid, gid uint32
	ino, rdev      uint64
	size           int64
	mtime, ctime   int64 // in nanoseconds since 1970
}

func stampOf(st *unix.Stat_t) stamp {
	return stamp{
		mode: st.Mode, uid: st.Uid, gid: st.Gid,
		ino: st.Ino, rdev: st.Rdev, size: st.Size,
		mtime: st.Mtim.Nano(), ctime: st.Ctim.Nano(),
	}
}

func (s *stamp) kind() uint32 { return s.mode & unix.S_IFMT }
func (s *stamp) isDir() bool  { return s.kind() == unix.S_IFDIR }

// unchanged says that the other side has what st is of. n may be nil.
func (n *node) unchanged(st *unix.Stat_t) bool {
	return n != nil && !n.unsure && n.stamp == stampOf(st)
}

// there says that the other side has something at the path. n may be nil.
func (n *node) there() bool { return n != nil && !n.nothing }

// kid may be asked of nil.
func (n *node) kid(name string) *node {
	if n == nil {
		return nil
	}
	return n.kids[name]
}

// walk is one pass over a directory.
type walk struct {
	out     *layer
	first   bool              // nothing was written before
	overlay bool              // the directory is an overlay's upper one
	began   int64             // nanoseconds since 1970
	links   map[uint64]string // the first name of files with several, by inode
}

// place is a directory that the walk is in.
type place struct {
	f       *os.File
	name    string // from the root, without a slash before it
	st      unix.Stat_t
	base    string // the same directory of the image, if that is to be compared
	written bool   // its own entry is in the layer
}

// write writes to w what has changed in the directory root since the last time.
// The first time that is all that differs from base; without one, all there is.
// In an overlay's upper directory what it marks as deleted is written as such.
//
// The directory is somebody else's, who may change it at the same time: no path in
// it is followed but by directories that are open.
func (t *tree) write(ctx context.Context, w io.Writer, root, base string, overlay bool) (err error) {
	f, err := os.Open(root)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // was only read
	k := &walk{
		out:     newLayer(w),
		first:   t.root == nil,
		overlay: overlay,
		began:   t.time().UnixNano(),
		links:   map[uint64]string{},
	}
	p := &place{f: f, base: base}
	if err := unix.Fstat(int(f.Fd()), &p.st); err != nil {
		return err
	}
	n := k.node(&p.st)
	if !t.root.unchanged(&p.st) {
		if err := k.ownEntry(p); err != nil {
			return err
		}
	}
	if n.kids, err = k.dir(ctx, p, t.root); err != nil {
		return err
	}
	if err := k.out.Close(); err != nil {
		return err
	}
	t.root = n
	return nil
}

// node is one for what is about to be written. A file that changed just now may
// change again within the same tick. And one that a process has mapped changes
// unseen until its pages are written back: the first time that is done before it
// is read, later there is no time for that.
func (k *walk) node(st *unix.Stat_t) *node {
	n := &node{stamp: stampOf(st), unsure: st.Ctim.Nano() >= k.began-int64(coarse)}
	n.unsure = n.unsure || !k.first && n.kind() == unix.S_IFREG
	return n
}

// dir goes through a directory. old is nil if the other side has nothing in it.
func (k *walk) dir(ctx context.Context, p *place, old *node) (map[string]*node, error) {
	names, err := p.f.Readdirnames(-1)
	if err != nil && !gone(err) {
		return nil, locate(p.name, err)
	}
	slices.Sort(names)
	kids := make(map[string]*node, len(names))
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		n, err := k.entry(ctx, p, name, old.kid(name))
		if err != nil {
			return nil, locate(path.Join(p.name, name), err)
		}
		if n != nil {
			kids[name] = n
		}
	}
	return kids, k.missing(p, old, kids)
}

// missing writes the deletion of what the other side has of a directory that is
// not there any more.
func (k *walk) missing(p *place, old *node, kids map[string]*node) error {
	var names []string
	if old != nil {
		names = slices.Sorted(maps.Keys(old.kids))
	}
	if p.base != "" {
		entries, err := os.ReadDir(p.base)
		if err != nil {
			return err
		}
		for _, e := range entries {
			names = append(names, e.Name())
		}
	}
	for _, name := range names {
		if kids[name] != nil || old != nil && !old.kid(name).there() {
			continue
		}
		if err := k.whiteout(p, name); err != nil {
			return err
		}
		if p.base != "" {
			kids[name] = &node{nothing: true}
		}
	}
	return nil
}

// entry looks at one name of a directory. It returns nil if it is gone.
func (k *walk) entry(ctx context.Context, p *place, name string, old *node) (*node, error) {
	var st unix.Stat_t
	dir := int(p.f.Fd())
	err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if gone(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if old.unchanged(&st) && !old.isDir() {
		return old, nil
	}
	fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if gone(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	full := path.Join(p.name, name)
	switch {
	case k.overlay && isWhiteout(&st), st.Mode&unix.S_IFMT == unix.S_IFSOCK:
		return k.nothing(p, name, &st, old)
	case strings.HasPrefix(name, whiteoutPrefix):
		return nil, fmt.Errorf("its name begins with %s, which marks deletions in layers: rename or remove it", whiteoutPrefix)
	case len(full) > maxPath:
		return nil, fmt.Errorf("its path has %d bytes, %d can be applied: move it", len(full), maxPath)
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return k.subdir(ctx, p, name, fd, old)
	case k.likeImage(p, name, fd, &st):
		return k.node(&st), nil
	default:
		return k.file(ctx, p, name, fd, &st)
	}
}

// isWhiteout reports whether an overlay has a deletion here.
func isWhiteout(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

// nothing records that there is nothing at a path that the other side could have.
func (k *walk) nothing(p *place, name string, st *unix.Stat_t, old *node) (*node, error) {
	n := k.node(st)
	n.nothing = true
	if old != nil && !old.there() {
		return n, nil
	}
	return n, k.whiteout(p, name)
}

// subdir goes into a directory. If it is another than the one that was written
// from this path before, all of it is written, and takes that one's place.
func (k *walk) subdir(ctx context.Context, p *place, name string, fd int, old *node) (*node, error) {
	sub, err := openDir(fd, path.Join(p.name, name))
	if gone(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer sub.f.Close() //nolint:errcheck // was only read
	n := k.node(&sub.st)
	if k.overlay {
		if n.opaque, err = k.isOpaque(sub, old); err != nil {
			return nil, err
		}
	}
	same := old.there() && old.isDir() && old.ino == n.ino && (old.opaque || !n.opaque)
	like := false
	if p.base != "" {
		sub.base, like = dirLikeImage(filepath.Join(p.base, name), sub)
	}
	if !same && !like {
		if err := k.parentEntry(p); err != nil {
			return nil, err
		}
	}
	if !like && (!same || !old.unchanged(&sub.st)) {
		if err := k.ownEntry(sub); err != nil {
			return nil, err
		}
	}
	if !same && (n.opaque || old.there()) {
		if err := k.whiteout(sub, opaqueName[len(whiteoutPrefix):]); err != nil {
			return nil, err
		}
	}
	if !same {
		old = nil
	}
	n.kids, err = k.dir(ctx, sub, old)
	return n, err
}

// openDir opens the directory that fd refers to.
func openDir(fd int, name string) (*place, error) {
	d, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	p := &place{f: os.NewFile(uintptr(d), name), name: name}
	if err := unix.Fstat(d, &p.st); err != nil {
		return nil, errors.Join(err, p.f.Close())
	}
	return p, nil
}

// isOpaque reports whether a directory of an overlay hides what is below it. To
// be marked changes its stamp.
func (k *walk) isOpaque(p *place, old *node) (bool, error) {
	if old.unchanged(&p.st) {
		return old.opaque, nil
	}
	for _, name := range []string{overlayXattr, overlayUser} {
		var value [2]byte
		n, err := unix.Fgetxattr(int(p.f.Fd()), name+".opaque", value[:])
		if err == nil {
			return n == 1 && value[0] == 'y', nil
		}
		if !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.ENOTSUP) {
			return false, err
		}
	}
	return false, nil
}

// fileError says which file of the directory an error is about.
type fileError struct {
	name string
	err  error
}

func (e *fileError) Error() string { return "/" + e.name + ": " + e.err.Error() }
func (e *fileError) Unwrap() error { return e.err }

// locate names the file, unless that is done: an error passes all directories on
// its way up.
func locate(name string, err error) error {
	if at := (*fileError)(nil); errors.As(err, &at) {
		return err
	}
	return &fileError{name, err}
}

// gone reports whether what was asked for has been removed meanwhile.
func gone(err error) bool { return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESTALE) }

// likeImage reports whether the image has the same file at a path. One with
// several names is always written, as they belong together.
func (k *walk) likeImage(p *place, name string, fd int, st *unix.Stat_t) bool {
	if p.base == "" || st.Nlink > 1 {
		return false
	}
	base := filepath.Join(p.base, name)
	var b unix.Stat_t
	if unix.Lstat(base, &b) != nil {
		return false
	}
	if b.Mode != st.Mode || b.Uid != st.Uid || b.Gid != st.Gid || b.Rdev != st.Rdev || b.Size != st.Size || b.Mtim != st.Mtim {
		return false
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		have, err := readLink(fd)
		want, baseErr := os.Readlink(base)
		return err == nil && baseErr == nil && have == want
	}
	return sameXattrs(base, procPath(fd)) && (st.Mtim.Nsec != 0 || sameContent(base, fd, st))
}

// dirLikeImage returns the image's directory at a path, or "", and whether it has
// the same attributes.
func dirLikeImage(base string, p *place) (dir string, like bool) {
	var b unix.Stat_t
	if unix.Lstat(base, &b) != nil || b.Mode&unix.S_IFMT != unix.S_IFDIR {
		return "", false
	}
	like = b.Mode == p.st.Mode && b.Uid == p.st.Uid && b.Gid == p.st.Gid && b.Mtim == p.st.Mtim
	return base, like && sameXattrs(base, procPath(int(p.f.Fd())))
}

func sameXattrs(a, b string) bool {
	x, err := xattrs(a)
	y, errB := xattrs(b)
	return err == nil && errB == nil && maps.Equal(x, y)
}

// sameContent compares regular files. Times of whole seconds, as images have
// them, tell too little.
func sameContent(base string, fd int, st *unix.Stat_t) bool {
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size == 0 {
		return true
	}
	a, err := os.Open(base)
	if err != nil {
		return false
	}
	defer a.Close() //nolint:errcheck // was only read
	b, err := os.Open(procPath(fd))
	if err != nil {
		return false
	}
	defer b.Close() //nolint:errcheck // likewise
	var x, y [32 << 10]byte
	for {
		n, errA := io.ReadFull(a, x[:])
		m, errB := io.ReadFull(b, y[:])
		if !bytes.Equal(x[:n], y[:m]) {
			return false
		}
		if errA != nil || errB != nil {
			return isEOF(errA) && isEOF(errB)
		}
	}
}

func isEOF(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }
