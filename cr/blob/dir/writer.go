package dir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/fault"
)

// Images hold the memory of programs, passwords and keys included: they are for
// their owner alone.
const (
	dirMode  = 0o700
	fileMode = 0o600
)

// Temporary names begin with tempPrefix and end with tempSuffix. blob's rules
// for names allow no leading dot, so they are never those of an image's files.
const (
	tempPrefix = ".stasis-"
	tempSuffix = ".tmp"
)

// ErrBusy means that another process writes a checkpoint to the directory.
var ErrBusy = errors.New("another checkpoint is being written here")

// A Writer makes one checkpoint in a directory. It is not safe for concurrent
// use, but the files it hands out are the caller's to write to as they like.
type Writer struct {
	root  *os.Root
	lock  *os.File // the directory itself: locked, and synced at the end
	path  string
	made  bool     // the directory is ours to remove
	old   []string // files of the checkpoint that was here before
	files []*file
	state string // temporary name of state.img while it is being written
	done  bool
}

// file is one file on its way to its final name.
type file struct {
	name  string // as the caller knows it
	final string // in the directory
	temp  string // "" once it has its final name
	f     *os.File
}

// Create prepares path, making it (mode 0700) and its parents if need be, to
// receive a checkpoint. Files that are there already stay; see the package's
// description for an older checkpoint. The caller ends the writer with Commit or
// Abort.
func Create(path string) (*Writer, error) {
	w := &Writer{path: path}
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		w.made = true
	}
	if err := w.prepare(); err != nil {
		return nil, errors.Join(fmt.Errorf("image directory %s: %w", path, err), w.Abort())
	}
	return w, nil
}

func (w *Writer) prepare() (err error) {
	if err := os.MkdirAll(w.path, dirMode); err != nil {
		return err
	}
	if w.root, err = os.OpenRoot(w.path); err != nil {
		return err
	}
	if w.lock, err = w.root.Open("."); err != nil {
		return err
	}
	if err := lock(w.lock); err != nil {
		w.made = false // it is the other's
		return err
	}
	if err := w.sweep(); err != nil {
		return err
	}
	w.old = oldFiles(w.root)
	return nil
}

// sweep removes what killed writers left.
func (w *Writer) sweep() error {
	names, err := w.lock.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, n := range names {
		if strings.HasPrefix(n, tempPrefix) && strings.HasSuffix(n, tempSuffix) {
			if err := w.root.Remove(n); err != nil {
				return err
			}
		}
	}
	return nil
}

// oldFiles names the files of a readable checkpoint in root. What can't be read
// can't be restored either: there is nothing to keep whole.
func oldFiles(root *os.Root) []string {
	img, err := readState(root)
	if err != nil {
		return nil
	}
	var names []string
	for _, f := range named(img) {
		names = append(names, f.name)
	}
	return names
}

// Create makes an empty file, mode 0600, open for reading and writing, which the
// image may name by name. The file belongs to the writer: Commit and Abort close
// it, the caller does not. Precondition: name is new, of lower case letters, digits, dots and dashes.
func (w *Writer) Create(name string) (*os.File, error) {
	if !plain(name) || name == blob.StateFile {
		return nil, fmt.Errorf("image file %q: %w", name, fs.ErrInvalid)
	}
	if slices.ContainsFunc(w.files, func(f *file) bool { return f.name == name }) {
		return nil, fmt.Errorf("image file %q: %w", name, fs.ErrExist)
	}
	e := &file{name: name, final: w.freeName(name), temp: tempName(name)}
	f, err := w.create(e.temp)
	if err != nil {
		return nil, err
	}
	e.f = f
	w.files = append(w.files, e)
	return f, nil
}

// Discard takes a file that Create made out of the image. The file is closed.
func (w *Writer) Discard(name string) error {
	i := slices.IndexFunc(w.files, func(f *file) bool { return f.name == name })
	if i < 0 {
		return fmt.Errorf("image file %q: %w", name, fs.ErrNotExist)
	}
	e := w.files[i]
	w.files = slices.Delete(w.files, i, i+1)
	return errors.Join(e.f.Close(), w.root.Remove(e.temp))
}

func (w *Writer) create(temp string) (*os.File, error) {
	if err := fault.Point("dir-create"); err != nil {
		return nil, err
	}
	f, err := w.root.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_EXCL, fileMode)
	if err != nil {
		return nil, fmt.Errorf("image file: %w", err)
	}
	return f, nil
}

func tempName(name string) string { return tempPrefix + name + tempSuffix }

// freeName is name, or pages.1.img for pages.img and so on if the checkpoint
// that is still in the directory uses it.
func (w *Writer) freeName(name string) string {
	stem, ext := name, ""
	if i := strings.LastIndexByte(name, '.'); i > 0 {
		stem, ext = name[:i], name[i:]
	}
	final := name
	taken := func(f *file) bool { return f.name == final || f.final == final }
	for n := 1; slices.Contains(w.old, final) || slices.ContainsFunc(w.files, taken); n++ {
		final = fmt.Sprintf("%s.%d%s", stem, n, ext)
	}
	return final
}

// Commit makes the checkpoint visible: it syncs the files, gives them their
// names, writes img as state.img and removes the checkpoint that was here
// before. It changes the names of files inside img where those of the older
// checkpoint were in the way. An img that [Open] would refuse is not written.
// After an error the caller calls Abort.
func (w *Writer) Commit(img *blob.Image) error {
	w.rename(img)
	if err := w.check(img); err != nil {
		return err
	}
	if err := w.writeState(img); err != nil {
		return err
	}
	if err := w.publish(); err != nil {
		return err
	}
	w.done = true
	w.removeOld()
	return w.release()
}

// rename puts the final names of files into img.
func (w *Writer) rename(img *blob.Image) {
	for _, e := range w.files {
		if img.Pages != nil && img.Pages.File == e.name {
			img.Pages.File = e.final
		}
		for _, f := range img.Pages.GetMore() {
			if f.File == e.name {
				f.File = e.final
			}
		}
		for _, t := range img.Namespaces.GetTmpfs() {
			if t.Archive == e.name {
				t.Archive = e.final
			}
		}
	}
}

// check compares img with the files that were written.
func (w *Writer) check(img *blob.Image) error {
	if err := img.Validate(); err != nil {
		return fmt.Errorf("checkpoint would not be readable: %w", err)
	}
	for _, n := range named(img) {
		i := slices.IndexFunc(w.files, func(f *file) bool { return f.final == n.name })
		if i < 0 {
			return fmt.Errorf("checkpoint names %s, which was not written", n.name)
		}
		if err := n.check(w.files[i].f); err != nil {
			return err
		}
	}
	return nil
}

// writeState writes and syncs state.img under a temporary name.
func (w *Writer) writeState(img *blob.Image) (err error) {
	f, err := w.create(tempName(blob.StateFile))
	if err != nil {
		return err
	}
	w.state = tempName(blob.StateFile)
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := blob.Write(f, img); err != nil {
		return fmt.Errorf("%s: %w", blob.StateFile, err)
	}
	if err := fault.Point("dir-state"); err != nil {
		return err
	}
	return f.Sync()
}

// publish syncs the files and renames them, state.img last. The directory is
// synced before, so that no power cut leaves a state.img without its files.
func (w *Writer) publish() error {
	for _, e := range w.files {
		if err := e.f.Sync(); err != nil {
			return fmt.Errorf("image file: %w", err)
		}
		if err := w.root.Rename(e.temp, e.final); err != nil {
			return fmt.Errorf("image file: %w", err)
		}
		e.temp = ""
		if err := fault.Point("dir-renamed"); err != nil {
			return err
		}
	}
	if err := w.lock.Sync(); err != nil {
		return fmt.Errorf("image directory: %w", err)
	}
	if err := fault.Point("dir-publish"); err != nil {
		return err
	}
	if err := w.root.Rename(w.state, blob.StateFile); err != nil {
		return fmt.Errorf("image file: %w", err)
	}
	w.state = blob.StateFile
	if err := fault.Point("dir-published"); err != nil {
		return err
	}
	return w.lock.Sync()
}

// removeOld drops the files of the older checkpoint. An error costs space only,
// and the new checkpoint stands: it is not reported.
func (w *Writer) removeOld() {
	for _, n := range w.old {
		if !slices.ContainsFunc(w.files, func(f *file) bool { return f.final == n }) {
			_ = w.root.Remove(n) //nolint:errcheck // see above
		}
	}
}

// Abort removes what the writer made, the directory included if that was made
// by Create and is empty. After a Commit without error it does nothing.
func (w *Writer) Abort() error {
	if w.done || w.root == nil {
		return nil
	}
	w.done = true
	var errList []error
	for _, e := range w.files {
		name := e.temp
		if name == "" {
			name = e.final
		}
		errList = append(errList, w.root.Remove(name))
	}
	if w.state != "" {
		errList = append(errList, w.root.Remove(w.state))
	}
	if w.state == blob.StateFile { // it took the older one's place
		w.removeOld()
	}
	if w.made {
		_ = os.Remove(w.path) //nolint:errcheck // it stays if it isn't empty
	}
	return errors.Join(append(errList, w.release())...)
}

// release closes every file, and the lock with the directory.
func (w *Writer) release() error {
	var errList []error
	for _, e := range w.files {
		errList = append(errList, e.f.Close())
	}
	if w.lock != nil {
		errList = append(errList, w.lock.Close())
	}
	return errors.Join(append(errList, w.root.Close())...)
}
