package namespaces

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// PAX records of our own (POSIX reserves VENDOR.keyword for that). A file with
// holes has both, and its body is its data without the holes: archive/tar reads
// sparse files and does not write them.
const (
	paxSize  = "STASIS.size"   // bytes of the file
	paxData  = "STASIS.data"   // "offset,length,offset,length,...", ascending
	paxXattr = "SCHILY.xattr." // star's, which GNU tar reads too
)

// maxExtents bounds the record of one file's data: beyond it small holes are
// written as zeros.
const maxExtents = 4096

// copyBuffer is how much of a file is in memory at a time.
const copyBuffer = 256 << 10

// writeBuffer is how much of an archive is written at a time.
const writeBuffer = 16 << 10

// saver writes one tree.
type saver struct {
	tree
	w     *tar.Writer
	links map[uint64]string // first name of each inode that has several
	buf   []byte            // nil before the first file that has data
}

// saveTree writes the tree at root as an archive that restoreTree reads.
func saveTree(ctx context.Context, root *os.File, w io.Writer) error {
	b := bufio.NewWriterSize(w, writeBuffer) // a tar.Writer writes a header in six pieces
	s := &saver{tree: tree{root}, w: tar.NewWriter(b), links: map[uint64]string{}}
	if err := s.save(ctx, "."); err != nil {
		return err
	}
	if err := s.w.Close(); err != nil {
		return err
	}
	return b.Flush()
}

// save writes what is at name and, of a directory, everything beneath.
func (s *saver) save(ctx context.Context, name string) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	f, st, err := s.look(name)
	if errors.Is(err, errMount) {
		return nil // not of this file system
	}
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // an O_PATH descriptor has nothing to flush
	if st.Mode&unix.S_IFMT == unix.S_IFSOCK {
		return nil
	}
	h, err := s.header(name, f, st)
	if err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeReg:
		return s.regular(h, f)
	case tar.TypeDir:
		if err := s.w.WriteHeader(h); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return s.children(ctx, name)
	}
	if err := s.w.WriteHeader(h); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func (s *saver) children(ctx context.Context, dir string) error {
	names, err := s.names(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := s.save(ctx, below(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// header describes one file, a later name of an inode as a link to the first.
func (s *saver) header(name string, f *os.File, st *unix.Stat_t) (*tar.Header, error) {
	h := &tar.Header{
		Name:       name,
		Format:     tar.FormatPAX,
		Mode:       int64(st.Mode & 0o7777),
		Uid:        int(st.Uid),
		Gid:        int(st.Gid),
		ModTime:    time.Unix(st.Mtim.Unix()),
		AccessTime: time.Unix(st.Atim.Unix()),
		PAXRecords: map[string]string{},
	}
	if err := s.kind(h, f, st); err != nil || h.Typeflag == tar.TypeLink {
		return h, err
	}
	attrs, err := xattrs(f)
	for k, v := range attrs {
		h.PAXRecords[paxXattr+k] = v
	}
	return h, err
}

// kind fills in what depends on the file's type.
func (s *saver) kind(h *tar.Header, f *os.File, st *unix.Stat_t) (err error) {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		h.Typeflag = tar.TypeDir
		return nil
	case unix.S_IFCHR, unix.S_IFBLK: // each name of its own: restore makes no device nodes
		h.Typeflag = tar.TypeChar
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
		return nil
	}
	if first, ok := s.links[st.Ino]; ok {
		h.Typeflag, h.Linkname = tar.TypeLink, first
		return nil
	}
	if st.Nlink > 1 {
		s.links[st.Ino] = h.Name
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		h.Typeflag, h.Size = tar.TypeReg, st.Size
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
		h.Linkname, err = readlink(f, st.Size)
	default:
		err = fmt.Errorf("%s: mode %o: %w", h.Name, st.Mode, unix.EINVAL)
	}
	return err
}

// readlink reads the symbolic link that f is open on with O_PATH (readlinkat(2),
// an empty name).
func readlink(f *os.File, size int64) (string, error) {
	b := make([]byte, size+1)
	n, err := unix.Readlinkat(int(f.Fd()), "", b)
	if err != nil {
		return "", &os.PathError{Op: "readlink", Path: f.Name(), Err: err}
	}
	return string(b[:n]), nil
}

// regular writes a regular file. The descriptor that was looked at is opened
// anew, so that it is the same file.
func (s *saver) regular(h *tar.Header, at *os.File) (err error) {
	f, err := os.OpenFile(fdPath(at), os.O_RDONLY|unix.O_NOATIME, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", h.Name, err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	data, err := extents(f, h.Size)
	if err != nil {
		return fmt.Errorf("%s: find data: %w", h.Name, err)
	}
	if stored := total(data); stored != h.Size {
		h.PAXRecords[paxSize] = strconv.FormatInt(h.Size, 10)
		h.PAXRecords[paxData] = formatExtents(data)
		h.Size = stored
	}
	if err := s.w.WriteHeader(h); err != nil {
		return fmt.Errorf("%s: %w", h.Name, err)
	}
	if s.buf == nil && len(data) > 0 {
		s.buf = make([]byte, copyBuffer)
	}
	for _, e := range data {
		n, err := io.CopyBuffer(plainWriter{s.w}, io.NewSectionReader(f, e.off, e.len), s.buf)
		if err == nil && n != e.len {
			err = fmt.Errorf("shrank while it was read: %w", io.ErrUnexpectedEOF)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
	}
	return nil
}

// plainWriter hides ReadFrom, with which a writer would use a buffer of its own.
type plainWriter struct{ io.Writer }

// extent is a run of a file's data, in bytes.
type extent struct{ off, len int64 }

// extents lists where a file has data, ascending and without the holes between
// (lseek(2), SEEK_DATA).
func extents(f *os.File, size int64) ([]extent, error) {
	var data []extent
	fd := int(f.Fd())
	for at := int64(0); at < size; {
		from, err := unix.Seek(fd, at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // a hole up to the end
			break
		}
		if err != nil {
			return nil, err
		}
		if at, err = unix.Seek(fd, from, unix.SEEK_HOLE); err != nil {
			return nil, err
		}
		at = min(at, size)
		if from < at {
			data = append(data, extent{from, at - from})
		}
		if len(data) > 2*maxExtents {
			data = merge(data)
		}
	}
	for len(data) > maxExtents {
		data = merge(data)
	}
	return data, nil
}

// merge halves a list by joining pairs over the hole between them.
func merge(data []extent) []extent {
	half := data[:0]
	for i := 0; i < len(data); i += 2 {
		last := data[min(i+1, len(data)-1)]
		half = append(half, extent{data[i].off, last.off + last.len - data[i].off})
	}
	return half
}

func total(data []extent) (n int64) {
	for _, e := range data {
		n += e.len
	}
	return n
}

func formatExtents(data []extent) string {
	words := make([]string, 0, 2*len(data))
	for _, e := range data {
		words = append(words, strconv.FormatInt(e.off, 10), strconv.FormatInt(e.len, 10))
	}
	return strings.Join(words, ",")
}
