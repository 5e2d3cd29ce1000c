package dir

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/errs"
)

// A Receiver puts a checkpoint that comes from elsewhere into a directory. What
// has come stays, whole files under their names and others under temporary ones,
// so that who was interrupted goes on; state.img gets its name last. It is not
// safe for concurrent use.
type Receiver struct {
	root *os.Root
	lock *os.File
	path string
	temp bool // state.img has yet to get its name
}

// Receive prepares path, making it (mode 0700) and its parents if need be. The
// caller closes the receiver.
func Receive(path string) (_ *Receiver, err error) {
	if err := os.MkdirAll(path, dirMode); err != nil {
		return nil, fmt.Errorf("image directory: %w", err)
	}
	r := &Receiver{path: path}
	if r.root, err = os.OpenRoot(path); err != nil {
		return nil, fmt.Errorf("image directory: %w", err)
	}
	if r.lock, err = r.root.Open("."); err == nil {
		err = lock(r.lock)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("image directory %s: %w", path, err), r.Close())
	}
	return r, nil
}

// Close gives the directory back. What is half there stays.
func (r *Receiver) Close() error {
	var err error
	if r.lock != nil {
		err = r.lock.Close()
	}
	return errors.Join(err, r.root.Close())
}

// State takes the state.img that has the digest, and returns what is in it. bring
// is called if it is not there yet: it writes what f lacks. A directory with
// another checkpoint is refused.
func (r *Receiver) State(sum []byte, bring func(f *os.File) error) (*blob.Image, error) {
	have, err := digest(r.root)
	switch {
	case err == nil && !bytes.Equal(have, sum):
		return nil, fmt.Errorf("image directory %s: another checkpoint is there already: %w", r.path, fs.ErrExist)
	case err == nil:
		return readState(r.root)
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("image directory %s: %w", r.path, err)
	}
	f, err := r.fetch(blob.StateFile, func(f *os.File) error { return checkDigest(f, sum) }, bring)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // it is synced
	r.temp = true
	img, err := parse(f)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", blob.StateFile, err), r.root.Remove(tempName(blob.StateFile)))
	}
	return img, nil
}

func parse(f *os.File) (*blob.Image, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	img, err := blob.Read(io.NewSectionReader(f, 0, st.Size()), st.Size())
	if err != nil {
		return nil, err
	}
	return img, img.Validate()
}

func checkDigest(f *os.File, want []byte) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(f, 0, st.Size())); err != nil {
		return err
	}
	if got := sum.Sum(nil); !bytes.Equal(got, want) {
		return fmt.Errorf("%d bytes with the digest %x, want %x: %w", st.Size(), got, want, errs.ErrCorrupt)
	}
	return nil
}

// Take takes a file that the image names, or the page store of an earlier
// checkpoint, by its [Earlier] name. whole says what is wrong with a file; bring,
// which writes what f lacks, is called if there is none that is right.
func (r *Receiver) Take(name string, whole, bring func(f *os.File) error) error {
	f, _, err := openRegular(r.root, name)
	if err == nil {
		if err = errors.Join(whole(f), f.Close()); err == nil {
			return nil
		}
	}
	if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errs.ErrCorrupt) {
		return fmt.Errorf("image file: %w", err)
	}
	if f, err = r.fetch(name, whole, bring); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("image file: %w", err)
	}
	if err := r.root.Rename(tempName(name), name); err != nil {
		return fmt.Errorf("image file: %w", err)
	}
	return nil
}

// fetch returns a file that is whole and synced, under its temporary name. One
// that is complete and yet not right is of no use to anybody; if a part of it was
// there before, that may have been another file's, and all of it is brought again.
func (r *Receiver) fetch(name string, whole, bring func(f *os.File) error) (*os.File, error) {
	f, err := r.open(tempName(name))
	if err != nil {
		return nil, fmt.Errorf("image file: %w", err)
	}
	useless, err := complete(f, whole, bring)
	if useless {
		err = errors.Join(err, r.root.Remove(tempName(name)))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", name, err), f.Close())
	}
	return f, nil
}

// complete brings what f lacks. useless says that f is complete, and wrong.
func complete(f *os.File, whole, bring func(f *os.File) error) (useless bool, err error) {
	st, err := f.Stat()
	if err != nil {
		return false, err
	}
	if err := bring(f); err != nil {
		return false, err
	}
	err = whole(f)
	if st.Size() > 0 && errors.Is(err, errs.ErrCorrupt) {
		if err := errors.Join(f.Truncate(0), bring(f)); err != nil {
			return false, err
		}
		err = whole(f)
	}
	if err != nil {
		return errors.Is(err, errs.ErrCorrupt), err
	}
	return false, f.Sync()
}

// open opens a temporary file for reading and writing: what is there of it, or an
// empty one.
func (r *Receiver) open(temp string) (*os.File, error) {
	st, err := r.root.Lstat(temp)
	if err == nil && !st.Mode().IsRegular() {
		err = r.root.Remove(temp)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return r.root.OpenFile(temp, os.O_RDWR|os.O_CREATE, fileMode)
}

// Commit gives state.img its name: the checkpoint is there, but for page stores
// that were not taken.
func (r *Receiver) Commit() error {
	if err := r.lock.Sync(); err != nil {
		return fmt.Errorf("image directory: %w", err)
	}
	if !r.temp {
		return nil
	}
	if err := r.root.Rename(tempName(blob.StateFile), blob.StateFile); err != nil {
		return fmt.Errorf("image file: %w", err)
	}
	r.temp = false
	return r.lock.Sync()
}

// Earlier is the name under which the page store of the earlier checkpoint n, as
// chunks number them, is received. No image can name a file so.
func Earlier(n int) string { return fmt.Sprintf(".stasis-earlier-%d", n) }

// Received is Stores for a checkpoint that was received with all its page stores.
func (d *Dir) Received() (files []*os.File, err error) {
	return d.stores(func(i int, p *blob.ParentStore) (*os.File, error) {
		f, _, err := openRegular(d.root, Earlier(i+1))
		if err != nil {
			return nil, err
		}
		if err := (namedFile{Earlier(i + 1), p.Size}).check(f); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		return f, nil
	})
}
