package shim

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// tempPrefix starts the name of the directory that containerd unpacks a
// checkpoint into, with os.MkdirTemp (plugins/services/tasks/local.go), and
// that it never removes.
const tempPrefix = "ctrd-checkpoint"

// errNotTemp means that a directory isn't containerd's temporary one.
var errNotTemp = errors.New("not a temporary checkpoint of containerd")

// tempParents are the places where containerd makes such a directory. The shim
// inherits containerd's environment, so they are the same here.
func tempParents() []string {
	return []string{os.Getenv("XDG_RUNTIME_DIR"), os.TempDir()}
}

// isTempName reports whether path, by its name alone, is one that containerd's
// MkdirTemp makes directly in one of the parents.
func isTempName(path string, parents []string) bool {
	random, ok := strings.CutPrefix(filepath.Base(path), tempPrefix)
	if !ok || random == "" || strings.Trim(random, "0123456789") != "" {
		return false
	}
	for _, p := range parents {
		if p != "" && path == filepath.Join(p, tempPrefix+random) {
			return true
		}
	}
	return false
}

// removeTemp removes containerd's temporary directory of a checkpoint. It takes
// no chances with anything else: the directory must be private to us, and hold
// only regular files, as an image does. One that is gone is fine; errors about
// what it isn't wrap errNotTemp.
func removeTemp(path string, parents []string) error {
	if !isTempName(path, parents) {
		return fmt.Errorf("%s: name: %w", path, errNotTemp)
	}
	parent, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer parent.Close() //nolint:errcheck // opened to name files only
	base := filepath.Base(path)
	info, err := parent.Lstat(base)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !isPrivateDir(info) {
		return fmt.Errorf("%s: %s: %w", path, info.Mode(), errNotTemp)
	}
	if err := empty(parent, base); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return parent.Remove(base)
}

func isPrivateDir(info fs.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && info.IsDir() && info.Mode().Perm()&0o077 == 0 && int(st.Uid) == os.Geteuid()
}

// empty removes the regular files of a directory, or nothing at all.
func empty(parent *os.Root, base string) error {
	dir, err := parent.OpenRoot(base)
	if err != nil {
		return err
	}
	defer dir.Close() //nolint:errcheck // opened to name files only
	entries, err := fs.ReadDir(dir.FS(), ".")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			return fmt.Errorf("%s is a %s: %w", e.Name(), e.Type(), errNotTemp)
		}
	}
	for _, e := range entries {
		if err := dir.Remove(e.Name()); err != nil {
			return err
		}
	}
	return nil
}
