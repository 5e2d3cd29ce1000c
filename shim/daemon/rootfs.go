package daemon

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/continuity/fs"
	"github.com/containerd/continuity/sysx"
	"golang.org/x/sys/unix"
)

const (
	xattrRecord = "SCHILY.xattr." // prefix of an extended attribute in a tar header
	rootEntry   = "./"            // the root directory's own entry
	copySize    = 256 << 10       // of one read of a file, in bytes
)

// layer writes an OCI layer. Unlike containerd's own writer it takes files that
// change under its hands, and keeps all attributes that a container can set.
type layer struct {
	tw  *tar.Writer
	buf []byte
}

func newLayer(w io.Writer) *layer { return &layer{tw: tar.NewWriter(w)} }

// Close ends the layer.
func (l *layer) Close() error { return l.tw.Close() }

// whiteout writes that a directory doesn't have a name any more.
func (k *walk) whiteout(p *place, name string) error {
	if err := k.parentEntry(p); err != nil {
		return err
	}
	full := path.Join(p.name, whiteoutPrefix+name)
	return k.out.tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: full, Format: tar.FormatPAX})
}

// parentEntry writes a directory's own entry before the first of what is in it:
// to change that changes the directory's times.
func (k *walk) parentEntry(p *place) error {
	if p.written {
		return nil
	}
	return k.ownEntry(p)
}

func (k *walk) ownEntry(p *place) error {
	p.written = true
	h := header(p.name+"/", &p.st)
	if p.name == "" {
		h.Name = rootEntry
	}
	h.Typeflag = tar.TypeDir
	if err := addXattrs(h, procPath(int(p.f.Fd()))); err != nil {
		return err
	}
	return k.out.tw.WriteHeader(h)
}

// file writes anything but a directory. fd names it without being open. It returns
// nil if the file is gone.
func (k *walk) file(ctx context.Context, p *place, name string, fd int, st *unix.Stat_t) (*node, error) {
	full := path.Join(p.name, name)
	if err := k.parentEntry(p); err != nil {
		return nil, err
	}
	if first, ok := k.links[st.Ino]; ok && st.Nlink > 1 {
		h := header(full, st)
		h.Typeflag, h.Linkname = tar.TypeLink, first
		return k.node(st), k.out.tw.WriteHeader(h)
	}
	n, err := k.content(ctx, full, fd, st)
	if n != nil && err == nil && st.Nlink > 1 {
		k.links[st.Ino] = full
	}
	return n, err
}

func (k *walk) content(ctx context.Context, full string, fd int, st *unix.Stat_t) (n *node, err error) {
	h := header(full, st)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return k.regular(ctx, h, fd)
	case unix.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
		h.Linkname, err = readLink(fd)
		if err != nil {
			return nil, err
		}
		return k.node(st), k.out.tw.WriteHeader(h)
	case unix.S_IFCHR:
		h.Typeflag = tar.TypeChar
	case unix.S_IFBLK:
		h.Typeflag = tar.TypeBlock
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	default:
		return nil, fmt.Errorf("mode %#o is of no known kind", st.Mode)
	}
	if h.Typeflag != tar.TypeFifo {
		h.Devmajor, h.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	}
	if err := addXattrs(h, procPath(fd)); err != nil {
		return nil, err
	}
	return k.node(st), k.out.tw.WriteHeader(h)
}

// regular writes a regular file, of the size that it has when it is opened. If it
// shrinks meanwhile the rest is zeros, and it changes again for the next time.
func (k *walk) regular(ctx context.Context, h *tar.Header, fd int) (*node, error) {
	f, err := os.Open(procPath(fd))
	if gone(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // was only read
	if k.first {
		writeBack(f)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, err
	}
	*h = *header(h.Name, &st)
	h.Typeflag, h.Size = tar.TypeReg, st.Size
	if err := addXattrs(h, procPath(fd)); err != nil {
		return nil, err
	}
	if err := k.out.tw.WriteHeader(h); err != nil {
		return nil, err
	}
	n := k.node(&st)
	short, err := k.out.copy(ctx, f, st.Size)
	n.unsure = n.unsure || short
	return n, err
}

// writeBack writes a file's dirty pages to its file system, whereupon the next
// write through a mapping changes its times. Where the system can't, the times
// are kept anyway, or not at all.
func writeBack(f *os.File) {
	const all = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
	_ = unix.SyncFileRange(int(f.Fd()), 0, 0, all) //nolint:errcheck // an error of the disk concerns who wrote to it
}

// copy writes exactly size bytes, and tells if some of them were not there.
func (l *layer) copy(ctx context.Context, r io.Reader, size int64) (short bool, err error) {
	if l.buf == nil {
		l.buf = make([]byte, copySize)
	}
	for size > 0 {
		if err := ctx.Err(); err != nil {
			return short, err
		}
		part := l.buf[:min(size, int64(len(l.buf)))]
		n := 0
		if !short {
			if n, err = io.ReadFull(r, part); err != nil && !isEOF(err) {
				return short, err
			}
		}
		if n < len(part) {
			short = true
			clear(part[n:])
		}
		if _, err := l.tw.Write(part); err != nil {
			return short, err
		}
		size -= int64(len(part))
	}
	return short, nil
}

// header has what all kinds of files have.
func header(name string, st *unix.Stat_t) *tar.Header {
	return &tar.Header{
		Format:  tar.FormatPAX, // has nanoseconds, and ids and names of any size
		Name:    name,
		Mode:    int64(st.Mode & 0o7777),
		Uid:     int(st.Uid),
		Gid:     int(st.Gid),
		ModTime: time.Unix(st.Mtim.Unix()),
	}
}

func addXattrs(h *tar.Header, name string) error {
	all, err := xattrs(name)
	if err != nil {
		return fmt.Errorf("extended attributes: %w", err)
	}
	for key, value := range all {
		if strings.Contains(key, "=") {
			return fmt.Errorf("extended attribute %q: a tar header can't have the name: remove it", key)
		}
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[xattrRecord+key] = value
	}
	return nil
}

// xattrs returns the extended attributes that a file has on any machine. Labels of
// security modules are the machine's own, and trusted ones the overlay's.
func xattrs(name string) (map[string]string, error) {
	keys, err := sysx.Listxattr(name)
	if errors.Is(err, unix.ENOTSUP) || gone(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all map[string]string
	for _, key := range keys {
		if !travels(key) {
			continue
		}
		value, err := sysx.Getxattr(name, key)
		if errors.Is(err, unix.ENODATA) || gone(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", key, err)
		}
		if all == nil {
			all = map[string]string{}
		}
		all[key] = string(value)
	}
	return all, nil
}

func travels(key string) bool {
	switch key {
	case "security.capability", "system.posix_acl_access", "system.posix_acl_default":
		return true
	default:
		return strings.HasPrefix(key, "user.") && !strings.HasPrefix(key, overlayUser+".")
	}
}

// procPath is a path of what a descriptor refers to, whatever name it has by now.
func procPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// readLink reads the symbolic link that fd refers to.
func readLink(fd int) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, "", buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// apply applies a layer to a directory, and reads r to its end. Names in it can't
// leave the directory.
func apply(ctx context.Context, root string, r io.Reader) error {
	var own *tar.Header
	filter := func(h *tar.Header) (bool, error) {
		if h.Name == "." {
			own = h
			return false, nil
		}
		return true, dropXattrs(root, h)
	}
	if _, err := archive.Apply(ctx, root, r, archive.WithFilter(filter)); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, r); err != nil {
		return err
	}
	if own == nil {
		return nil
	}
	return applyRoot(root, own)
}

// dropXattrs removes the extended attributes of a directory that its entry doesn't
// have. Of anything else a new one is made.
func dropXattrs(root string, h *tar.Header) error {
	if h.Typeflag != tar.TypeDir {
		return nil
	}
	name, err := fs.RootPath(root, h.Name)
	if err != nil {
		return err
	}
	have, err := xattrs(name)
	if err != nil {
		return fmt.Errorf("%s: extended attributes: %w", h.Name, err)
	}
	for key := range have {
		if _, ok := h.PAXRecords[xattrRecord+key]; ok {
			continue
		}
		if err := unix.Removexattr(name, key); err != nil {
			return fmt.Errorf("%s: extended attribute %s: %w", h.Name, key, err)
		}
	}
	return nil
}

// applyRoot gives the root directory its attributes, which archive.Apply leaves
// alone.
func applyRoot(root string, h *tar.Header) error {
	if h.Typeflag != tar.TypeDir {
		return fmt.Errorf("the layer has an entry of type %q for the root directory", h.Typeflag)
	}
	if err := os.Lchown(root, h.Uid, h.Gid); err != nil {
		return err
	}
	if err := dropXattrs(root, h); err != nil {
		return err
	}
	for record, value := range h.PAXRecords {
		key, ok := strings.CutPrefix(record, xattrRecord)
		if !ok || !travels(key) {
			continue
		}
		if err := unix.Setxattr(root, key, []byte(value), 0); err != nil {
			return fmt.Errorf("extended attribute %s: %w", key, err)
		}
	}
	if err := os.Chmod(root, h.FileInfo().Mode()); err != nil {
		return err
	}
	return os.Chtimes(root, h.ModTime, h.ModTime)
}
