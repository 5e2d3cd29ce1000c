package namespaces

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/stasis-cr/stasis/cr/errs"
	"golang.org/x/sys/unix"
)

// restorer fills one tree from an archive that may be hostile.
type restorer struct {
	tree
	kept map[string]node // what clear left and no entry has named yet
	dirs []dirTimes      // to set once nothing is made in them any more
	buf  []byte
}

// node is a directory or a device node that was there before.
type node struct {
	format uint32 // S_IFDIR, S_IFCHR or S_IFBLK
	rdev   uint64
}

// dirTimes are all that is left to do for a directory at the end. There may be
// many, so that whole headers would be too much.
type dirTimes struct {
	name  string
	times [2]unix.Timespec
}

// restoreTree makes the tree at root equal to an archive of saveTree. Device
// nodes and what other mounts cover stay; everything else goes first, so that no
// entry meets a file that it did not make.
func restoreTree(ctx context.Context, root *os.File, from io.Reader) error {
	r := &restorer{tree: tree{root}, kept: map[string]node{".": {format: unix.S_IFDIR}}, buf: make([]byte, copyBuffer)}
	if _, err := r.clear(ctx, "."); err != nil {
		return err
	}
	archive := tar.NewReader(from)
	for {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return damaged(err)
		}
		if err := r.entry(h, archive); err != nil {
			return err
		}
	}
	return r.finish()
}

// damaged marks an error of the archive itself.
func damaged(err error) error { return fmt.Errorf("archive: %w: %w", errs.ErrCorrupt, err) }

// clear empties a directory of the tree, but for device nodes, mountpoints and
// the directories that lead to them. It reports whether anything stays.
func (r *restorer) clear(ctx context.Context, dir string) (stays bool, err error) {
	if err := context.Cause(ctx); err != nil {
		return false, err
	}
	names, err := r.names(dir)
	if err != nil {
		return false, err
	}
	for _, base := range names {
		kept, err := r.clearOne(ctx, below(dir, base))
		if err != nil {
			return false, err
		}
		stays = stays || kept
	}
	return stays, nil
}

func (r *restorer) clearOne(ctx context.Context, name string) (kept bool, err error) {
	f, st, err := r.look(name)
	if errors.Is(err, errMount) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	if err := f.Close(); err != nil {
		return false, err
	}
	format := st.Mode & unix.S_IFMT
	switch format {
	case unix.S_IFDIR:
		if kept, err = r.clear(ctx, name); err == nil && !kept {
			err = r.remove(name, unix.AT_REMOVEDIR)
		}
	case unix.S_IFCHR, unix.S_IFBLK:
		kept = true
	default:
		err = r.remove(name, 0)
	}
	if kept {
		r.kept[name] = node{format, st.Rdev}
	}
	return kept, err
}

func (r *restorer) remove(name string, flags int) error {
	return r.inParent("remove", name, func(dir int, base string) error { return unix.Unlinkat(dir, base, flags) })
}

// entry makes what one header describes.
func (r *restorer) entry(h *tar.Header, body io.Reader) error {
	name := strings.TrimSuffix(h.Name, "/")
	if !proper(name) || name == "." && h.Typeflag != tar.TypeDir {
		return damaged(fmt.Errorf("name %q", h.Name))
	}
	h.Name = name
	if err := checkHeader(h); err != nil {
		return damaged(fmt.Errorf("%s: %w", name, err))
	}
	return r.explain(name, r.make(h, body))
}

// proper reports whether a name is one that saveTree writes: "." or components
// that are no "." or "..", relative. Unlike for fs.ValidPath the bytes may be any
// but NUL, as they may on Linux.
func proper(name string) bool {
	if name == "." {
		return true
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || part == "." || part == ".." || strings.IndexByte(part, 0) >= 0 {
			return false
		}
	}
	return true
}

// explain says whose fault an error is. saveTree writes no name twice, no file
// without its directory and nothing behind a link.
func (r *restorer) explain(name string, err error) error {
	if errors.Is(err, unix.EEXIST) {
		if f, _, lookErr := r.look(name); lookErr == nil {
			err = errors.Join(err, f.Close())
		} else {
			err = errors.Join(err, lookErr)
		}
	}
	switch {
	case errors.Is(err, errMount):
		return fmt.Errorf("%w: %w", errs.ErrHost, err)
	case errors.Is(err, unix.EEXIST), errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR),
		errors.Is(err, unix.ELOOP):
		return damaged(err)
	}
	return err
}

// checkHeader refuses numbers that the kernel would take for something else.
func checkHeader(h *tar.Header) error {
	const maxID = 1<<32 - 2 // one more means "leave it" to chown(2)
	if h.Uid < 0 || int64(h.Uid) > maxID || h.Gid < 0 || int64(h.Gid) > maxID {
		return fmt.Errorf("owner %d:%d", h.Uid, h.Gid)
	}
	if h.Mode < 0 || h.Mode > 0o7777 {
		return fmt.Errorf("mode %o", h.Mode)
	}
	for key := range h.PAXRecords {
		// A few bytes of these can claim a file of exabytes, which would be written out.
		if strings.HasPrefix(key, "GNU.sparse.") {
			return fmt.Errorf("record %s", key)
		}
		if attr, ok := strings.CutPrefix(key, paxXattr); ok && !portable(attr) {
			return fmt.Errorf("extended attribute %q", attr)
		}
	}
	return nil
}

func (r *restorer) make(h *tar.Header, body io.Reader) error {
	if err := r.replace(h); err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return r.directory(h)
	case tar.TypeReg:
		return r.regular(h, body)
	case tar.TypeLink:
		return r.link(h)
	case tar.TypeChar, tar.TypeBlock:
		return r.device(h)
	case tar.TypeSymlink:
		if err := r.inParent("symlink", h.Name, func(dir int, base string) error {
			return unix.Symlinkat(h.Linkname, dir, base)
		}); err != nil {
			return err
		}
	case tar.TypeFifo:
		if err := r.inParent("mkfifo", h.Name, func(dir int, base string) error {
			return unix.Mknodat(dir, base, unix.S_IFIFO|0o600, 0)
		}); err != nil {
			return err
		}
	default:
		return damaged(fmt.Errorf("entry of type %q", h.Typeflag))
	}
	return r.attributes(h)
}

// replace removes what the container had replaced by something else: a device
// node, or a directory of them.
func (r *restorer) replace(h *tar.Header) error {
	there, ok := r.kept[h.Name]
	switch {
	case !ok, h.Typeflag == tar.TypeChar, h.Typeflag == tar.TypeBlock:
		return nil
	case h.Typeflag == tar.TypeDir && there.format == unix.S_IFDIR:
		return nil
	}
	return r.discard(func(name string) bool { return name == h.Name || beneath(name, h.Name) })
}

// discard removes those of the kept files that a condition picks. Directories
// that lead to other mounts are not empty and stay.
func (r *restorer) discard(pick func(name string) bool) error {
	// In reverse byte order a directory comes after what is in it.
	for _, name := range slices.Backward(slices.Sorted(maps.Keys(r.kept))) {
		if !pick(name) {
			continue
		}
		flags := 0
		if r.kept[name].format == unix.S_IFDIR {
			flags = unix.AT_REMOVEDIR
		}
		if err := r.remove(name, flags); err != nil && !errors.Is(err, unix.ENOTEMPTY) {
			return err
		}
		delete(r.kept, name)
	}
	return nil
}

// directory makes a directory unless clear had to leave it. Its times come last:
// making files in it changes them. Files in it get their own owner, mode and
// access list, whatever they inherit from it.
func (r *restorer) directory(h *tar.Header) error {
	if there, ok := r.kept[h.Name]; ok && there.format == unix.S_IFDIR {
		delete(r.kept, h.Name)
	} else if err := r.inParent("mkdir", h.Name, func(dir int, base string) error {
		return unix.Mkdirat(dir, base, 0o700)
	}); err != nil {
		return err
	}
	r.dirs = append(r.dirs, dirTimes{h.Name, timesOf(h)})
	return r.attributes(h)
}

// device accepts a node that the OCI runtime made and no other: devices are what
// the container's config gives it, not its image.
func (r *restorer) device(h *tar.Header) error {
	want := node{unix.S_IFCHR, unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))}
	if h.Typeflag == tar.TypeBlock {
		want.format = unix.S_IFBLK
	}
	if there, ok := r.kept[h.Name]; !ok || there != want {
		return fmt.Errorf("device %s (%d:%d) is not among this container's devices: %w",
			h.Name, h.Devmajor, h.Devminor, errs.ErrHost)
	}
	delete(r.kept, h.Name)
	return r.attributes(h)
}

// link gives a second name to a file that the archive has brought already.
func (r *restorer) link(h *tar.Header) error {
	if !proper(h.Linkname) {
		return damaged(fmt.Errorf("link to %q", h.Linkname))
	}
	f, st, err := r.look(h.Linkname)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // an O_PATH descriptor has nothing to flush
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFLNK, unix.S_IFIFO:
	default:
		return damaged(fmt.Errorf("link to %s, of mode %o", h.Linkname, st.Mode))
	}
	return r.inParent("link", h.Name, func(dir int, base string) error {
		return unix.Linkat(unix.AT_FDCWD, fdPath(f), dir, base, unix.AT_SYMLINK_FOLLOW)
	})
}

func (r *restorer) regular(h *tar.Header, body io.Reader) error {
	size, data, err := layout(h)
	if err != nil {
		return damaged(fmt.Errorf("%s: %w", h.Name, err))
	}
	if err := r.contents(h.Name, size, data, body); err != nil {
		return err
	}
	return r.attributes(h)
}

// contents makes a file and fills it.
func (r *restorer) contents(name string, size int64, data []extent, body io.Reader) (err error) {
	var fd int
	if err := r.inParent("create", name, func(dir int, base string) (err error) {
		fd, err = unix.Openat(dir, base,
			unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		return err
	}); err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Truncate(size); err != nil {
		return err
	}
	for _, e := range data {
		n, err := io.CopyBuffer(io.NewOffsetWriter(f, e.off), io.LimitReader(body, e.len), r.buf)
		if err == nil && n != e.len {
			err = io.ErrUnexpectedEOF
		}
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return damaged(fmt.Errorf("%s: %w", name, err))
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// layout tells a file's size and where the bytes of its entry belong: in one
// run, or, with our records, around holes.
func layout(h *tar.Header) (size int64, data []extent, err error) {
	text, ok := h.PAXRecords[paxSize]
	if !ok {
		return h.Size, []extent{{0, h.Size}}, nil
	}
	if size, err = strconv.ParseInt(text, 10, 64); err != nil || size < 0 {
		return 0, nil, fmt.Errorf("record %s: %q", paxSize, text)
	}
	if data, err = parseExtents(h.PAXRecords[paxData], size); err != nil {
		return 0, nil, fmt.Errorf("record %s: %w", paxData, err)
	}
	if total(data) != h.Size {
		return 0, nil, fmt.Errorf("record %s: %d bytes of data, entry has %d", paxData, total(data), h.Size)
	}
	return size, data, nil
}

var errExtent = errors.New("not ascending runs within the file")

// parseExtents reads what formatExtents wrote.
func parseExtents(text string, size int64) (data []extent, err error) {
	if text == "" {
		return nil, nil
	}
	words := strings.Split(text, ",")
	if len(words)%2 != 0 {
		return nil, errExtent
	}
	end := int64(0)
	for pair := range slices.Chunk(words, 2) {
		off, errOff := strconv.ParseInt(pair[0], 10, 64)
		length, errLen := strconv.ParseInt(pair[1], 10, 64)
		if err := errors.Join(errOff, errLen); err != nil {
			return nil, err
		}
		if off < end || length <= 0 || off > size || length > size-off {
			return nil, errExtent
		}
		end = off + length
		data = append(data, extent{off, length})
	}
	return data, nil
}

// finish removes what the OCI runtime made and the container had removed, and
// sets the times of directories, which nothing changes any more.
func (r *restorer) finish() error {
	delete(r.kept, ".") // an archive without the root leaves it as it is
	if err := r.discard(func(string) bool { return true }); err != nil {
		return err
	}
	for _, d := range slices.Backward(r.dirs) {
		f, err := r.open(d.name, unix.O_PATH|unix.O_DIRECTORY)
		if err != nil {
			return err
		}
		if err := errors.Join(setTimes(f, d.times), f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// attributes sets owner, mode, extended attributes and times, in the order in
// which none undoes another: chown(2) clears set-user-ID bits and capabilities,
// and everything sets the change time only.
func (r *restorer) attributes(h *tar.Header) error {
	f, st, err := r.look(h.Name)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // an O_PATH descriptor has nothing to flush
	if err := unix.Fchownat(int(f.Fd()), "", h.Uid, h.Gid, unix.AT_EMPTY_PATH); err != nil {
		return &os.PathError{Op: "chown", Path: h.Name, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK { // a symbolic link has no mode of its own
		if err := unix.Chmod(fdPath(f), uint32(h.Mode)); err != nil {
			return &os.PathError{Op: "chmod", Path: h.Name, Err: err}
		}
	}
	if err := setXattrs(f, h.PAXRecords); err != nil {
		return err
	}
	return setTimes(f, timesOf(h))
}

// timesOf returns the access and modification times of an entry.
func timesOf(h *tar.Header) [2]unix.Timespec {
	times := [2]unix.Timespec{
		{Sec: h.AccessTime.Unix(), Nsec: int64(h.AccessTime.Nanosecond())},
		{Sec: h.ModTime.Unix(), Nsec: int64(h.ModTime.Nanosecond())},
	}
	if h.AccessTime.IsZero() { // an archive without it
		times[0] = unix.Timespec{Nsec: unix.UTIME_OMIT}
	}
	return times
}

func setTimes(f *os.File, times [2]unix.Timespec) error {
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, fdPath(f), times[:], 0); err != nil {
		return &os.PathError{Op: "set times", Path: f.Name(), Err: err}
	}
	return nil
}

// setXattrs gives the file the extended attributes of its entry. A directory
// that was there before loses those that the entry does not have.
func setXattrs(f *os.File, records map[string]string) error {
	old, err := xattrs(f)
	if err != nil {
		return err
	}
	for name := range old {
		if _, ok := records[paxXattr+name]; ok {
			continue
		}
		if err := unix.Removexattr(fdPath(f), name); err != nil {
			return fmt.Errorf("%s: remove extended attribute %s: %w", f.Name(), name, err)
		}
	}
	for key, value := range records {
		name, ok := strings.CutPrefix(key, paxXattr)
		if !ok {
			continue
		}
		if err := unix.Setxattr(fdPath(f), name, []byte(value), 0); err != nil {
			return fmt.Errorf("%s: extended attribute %s: %w", f.Name(), name, err)
		}
	}
	return nil
}
