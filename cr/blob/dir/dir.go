package dir

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/errs"
)

// A Dir is a checkpoint in a directory, read and found whole.
type Dir struct {
	path string
	root *os.Root
	img  *blob.Image
}

// Open reads and checks the checkpoint in path. The caller closes it. Errors
// wrap errs.ErrNotImage, errs.ErrVersion or errs.ErrCorrupt, or are the file
// system's.
func Open(path string) (*Dir, error) {
	d, err := OpenState(path)
	if err != nil {
		return nil, err
	}
	if err := d.checkFiles(); err != nil {
		return nil, errors.Join(fmt.Errorf("image directory %s: %w", path, err), d.Close())
	}
	return d, nil
}

// OpenState is Open for who looks for damage: it reads and checks state.img only.
// The files that it names may be missing, or have another size.
func OpenState(path string) (*Dir, error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fmt.Errorf("image directory: %w", err)
	}
	img, err := readState(root)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("image directory %s: %w", path, err), root.Close())
	}
	return &Dir{path: path, root: root, img: img}, nil
}

// checkFiles looks at every file that the image names.
func (d *Dir) checkFiles() error {
	for _, n := range named(d.img) {
		f, err := d.Open(n.name)
		if err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}

// readState reads and validates state.img.
func readState(root *os.Root) (*blob.Image, error) {
	f, size, err := openRegular(root, blob.StateFile)
	switch {
	case errors.Is(err, fs.ErrNotExist) && exists(root, "inventory.img"): // ours has one for the neighbours' sake
		return nil, fmt.Errorf("no %s: the image lost it, or CRIU made the image: %w", blob.StateFile, errs.ErrNotImage)
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("no %s: %w", blob.StateFile, errs.ErrNotImage)
	case err != nil:
		return nil, err
	}
	defer f.Close() //nolint:errcheck // read only
	img, err := blob.Read(f, size)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", blob.StateFile, err)
	}
	if err := img.Validate(); err != nil {
		return nil, fmt.Errorf("%s: %w", blob.StateFile, err)
	}
	return img, nil
}

func exists(root *os.Root, name string) bool {
	_, err := root.Lstat(name)
	return err == nil
}

// Image is what state.img holds. It is shared: callers do not change it.
func (d *Dir) Image() *blob.Image { return d.img }

// State opens state.img itself, for reading. The caller closes it.
func (d *Dir) State() (*os.File, error) {
	f, _, err := openRegular(d.root, blob.StateFile)
	return f, err
}

// Open opens a file that the image names, for reading. The caller closes it.
// Other files are none of the checkpoint's: they are refused.
func (d *Dir) Open(name string) (*os.File, error) {
	f, size, err := d.open(name)
	if err != nil {
		return nil, err
	}
	if err := (namedFile{name, size}).check(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// OpenAsIs is Open for who looks for damage: the size may be another than it
// should be, which sized, if it is not nil, says.
func (d *Dir) OpenAsIs(name string) (f *os.File, sized, err error) {
	f, size, err := d.open(name)
	if err != nil {
		return nil, nil, err
	}
	return f, (namedFile{name, size}).check(f), nil
}

// open also returns the size that the file should have.
func (d *Dir) open(name string) (*os.File, uint64, error) {
	for _, n := range named(d.img) {
		if n.name != name {
			continue
		}
		f, _, err := openRegular(d.root, name)
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%s is missing: %w", name, errs.ErrCorrupt)
		}
		return f, n.size, err
	}
	return nil, 0, fmt.Errorf("%q is not part of the checkpoint: %w", name, fs.ErrNotExist)
}

// Digest names a checkpoint: the sha256 of its state.img, which holds the
// checksums of everything else.
func Digest(path string) ([]byte, error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fmt.Errorf("image directory: %w", err)
	}
	defer root.Close() //nolint:errcheck // read only
	return digest(root)
}

func digest(root *os.Root) ([]byte, error) {
	f, _, err := openRegular(root, blob.StateFile)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // read only
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return nil, err
	}
	return sum.Sum(nil), nil
}

// Stores opens the files of the page store and those of earlier checkpoints that
// the image needs, in the order in which its chunks number them; the first is nil if
// the image has none. The caller closes them. Each earlier checkpoint must be the one
// that the image was made after, to the bit.
func (d *Dir) Stores() (files []*os.File, err error) {
	return d.stores(func(_ int, p *blob.ParentStore) (*os.File, error) { return d.Parent(p) })
}

// stores opens the earlier ones by open.
func (d *Dir) stores(open func(i int, p *blob.ParentStore) (*os.File, error)) (files []*os.File, err error) {
	defer func() {
		if err != nil {
			for _, f := range files {
				if f != nil {
					err = errors.Join(err, f.Close())
				}
			}
			files = nil
		}
	}()
	add := func(f *os.File, err error) error {
		if err == nil {
			files = append(files, f)
		}
		return err
	}
	if name := d.img.Pages.GetFile(); name == "" {
		files = append(files, nil)
	} else if err := add(d.Open(name)); err != nil {
		return files, err
	}
	for i, p := range d.img.Pages.GetParents() {
		if err := add(open(i, p)); err != nil {
			return files, err
		}
	}
	for _, f := range d.img.Pages.GetMore() {
		if err := add(d.Open(f.File)); err != nil {
			return files, err
		}
	}
	return files, nil
}

// Parent opens the page store of one of the earlier checkpoints that the image
// names. The caller closes it.
func (d *Dir) Parent(p *blob.ParentStore) (*os.File, error) {
	f, err := d.parent(p)
	if err != nil {
		return nil, fmt.Errorf("the earlier checkpoint %s, which this one needs: %w", p.Dir, err)
	}
	return f, nil
}

func (d *Dir) parent(p *blob.ParentStore) (*os.File, error) {
	root, err := os.OpenRoot(d.path + "/" + p.Dir) // not cleaned: the directory's own name may be a link
	if err != nil {
		return nil, err
	}
	defer root.Close() //nolint:errcheck // read only
	sum, err := digest(root)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(sum, p.State) {
		return nil, fmt.Errorf("%s has the digest %x, want %x: %w", blob.StateFile, sum, p.State, errs.ErrCorrupt)
	}
	f, _, err := openRegular(root, p.File)
	if err != nil {
		return nil, err
	}
	if err := (namedFile{p.File, p.Size}).check(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Close releases the directory. Files that were opened stay open.
func (d *Dir) Close() error { return d.root.Close() }

// openRegular opens a regular file of root and nothing else. It looks before it
// opens, because opening a device or a FIFO may do something or wait for ever,
// and after, because the name may have changed hands in between.
func openRegular(root *os.Root, name string) (*os.File, int64, error) {
	before, err := root.Lstat(name)
	if err != nil {
		return nil, 0, err
	}
	if !before.Mode().IsRegular() {
		return nil, 0, fmt.Errorf("%s is a %s, not a regular file: %w", name, kind(before.Mode()), errs.ErrCorrupt)
	}
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err
	}
	after, err := f.Stat()
	if err == nil && !os.SameFile(before, after) {
		err = fmt.Errorf("%s changed while it was opened: %w", name, errs.ErrCorrupt)
	}
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, after.Size(), nil
}

func kind(m fs.FileMode) string {
	switch {
	case m&fs.ModeSymlink != 0:
		return "symbolic link"
	case m.IsDir():
		return "directory"
	case m&fs.ModeNamedPipe != 0:
		return "FIFO"
	case m&fs.ModeSocket != 0:
		return "socket"
	}
	return "device"
}

// namedFile is a file that an image names, and its size in bytes.
type namedFile struct {
	name string
	size uint64
}

// named lists the files that make up the checkpoint besides state.img.
func named(img *blob.Image) []namedFile {
	var list []namedFile
	for _, f := range img.Pages.OwnFiles() {
		list = append(list, namedFile{f.Name, f.Size})
	}
	for _, t := range img.Namespaces.GetTmpfs() {
		if t.GetArchive() != "" {
			list = append(list, namedFile{t.GetArchive(), t.GetSize()})
		}
	}
	return list
}

// check compares the size of f with the recorded one.
func (n namedFile) check(f *os.File) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if st.Size() < 0 || uint64(st.Size()) != n.size {
		return fmt.Errorf("%s has %d bytes, want %d: %w", n.name, st.Size(), n.size, errs.ErrCorrupt)
	}
	return nil
}

// plain tells whether name is one that an image may use: lower case letters,
// digits, dots and dashes, no dot in front.
func plain(name string) bool {
	if name == "" || name[0] == '.' || len(name) > 64 {
		return false
	}
	for i := range len(name) {
		c := name[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '.' && c != '-' {
			return false
		}
	}
	return true
}
