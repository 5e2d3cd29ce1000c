package dir_test

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/blob/dir"
	"github.com/stasis-cr/stasis/cr/blob/dir/dirtest"
	"github.com/stasis-cr/stasis/cr/errs"
)

// names lists path's entries.
func names(t *testing.T, path string) []string {
	t.Helper()
	entries, err := os.ReadDir(path)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

func wantNames(t *testing.T, path string, want ...string) {
	t.Helper()
	slices.Sort(want)
	if got := names(t, path); !slices.Equal(got, want) {
		t.Errorf("directory holds %q, want %q", got, want)
	}
}

func open(t *testing.T, path string) *dir.Dir {
	t.Helper()
	d, err := dir.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func TestWriteThenOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "b")
	dirtest.Write(t, path)
	wantNames(t, path, blob.StateFile, dirtest.Pages, dirtest.More, dirtest.Tmpfs)
	for _, n := range append(names(t, path), ".") {
		st, err := os.Lstat(filepath.Join(path, n))
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", n, st.Mode())
		}
	}
	d := open(t, path)
	if got := d.Image().Container.GetId(); got != "c1" {
		t.Errorf("container %q", got)
	}
	f, err := d.Open(dirtest.Pages)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if b, err := io.ReadAll(f); err != nil || len(b) != 2*4096 {
		t.Errorf("read %d bytes of pages, %v", len(b), err)
	}
	if _, err := d.Open(blob.StateFile); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that the image does not name: %v", err)
	}
}

// TestReplace checks that an older checkpoint is whole until it is replaced, and
// that nothing of it stays.
func TestReplace(t *testing.T) {
	path := t.TempDir()
	foreign := filepath.Join(path, "dump.log")
	if err := os.WriteFile(foreign, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	want := [][]string{
		{dirtest.Pages, dirtest.More, dirtest.Tmpfs},
		{"pages.1.img", "pages-2.1.img", "tmpfs-1.1.tar"},
		{dirtest.Pages, dirtest.More, dirtest.Tmpfs},
	}
	for i, files := range want {
		w, err := dir.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		dirtest.Fill(t, w)
		if i > 0 {
			open(t, path)
		}
		if err := w.Commit(dirtest.Image(t)); err != nil {
			t.Fatal(err)
		}
		wantNames(t, path, append(files, blob.StateFile, "dump.log")...)
		if got := open(t, path).Image().Pages.OwnFiles(); got[0].Name != files[0] || got[1].Name != files[1] {
			t.Errorf("round %d: pages in %v, want %v", i, got, files)
		}
	}
}

func TestAbort(t *testing.T) {
	made := filepath.Join(t.TempDir(), "made")
	old := t.TempDir()
	dirtest.Write(t, old)
	for _, path := range []string{made, old} {
		w, err := dir.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		dirtest.Fill(t, w)
		for range 2 {
			if err := w.Abort(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := os.Lstat(made); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory that Create made is still there: %v", err)
	}
	wantNames(t, old, blob.StateFile, dirtest.Pages, dirtest.More, dirtest.Tmpfs)
	open(t, old)
}

func TestOneWriter(t *testing.T) {
	path := t.TempDir()
	w, err := dir.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dir.Create(path); !errors.Is(err, dir.ErrBusy) {
		t.Errorf("second writer: %v", err)
	}
	if err := w.Abort(); err != nil {
		t.Fatal(err)
	}
	dirtest.Write(t, path)
}

func TestCreateNames(t *testing.T) {
	w, err := dir.Create(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := w.Abort(); err != nil {
			t.Error(err)
		}
	}()
	bad := []string{"", ".", "..", ".x", "a/b", "../a", "A", "a\x00", "a_b", blob.StateFile, strings.Repeat("a", 65)}
	for _, name := range bad {
		if _, err := w.Create(name); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if _, err := w.Create("a.img"); err != nil {
		t.Error(err)
	}
	if _, err := w.Create("a.img"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("twice: %v", err)
	}
}

// TestCommitRefuses checks that no image becomes visible that Open would refuse.
func TestCommitRefuses(t *testing.T) {
	for name, spoil := range map[string]func(*blob.Image){
		"file not written": func(img *blob.Image) { img.Namespaces.Tmpfs[0].Archive = "other.tar" },
		"wrong size":       func(img *blob.Image) { img.Namespaces.Tmpfs[0].Size++ },
		"invalid":          func(img *blob.Image) { img.Processes[0].Ppid = 99 },
	} {
		t.Run(name, func(t *testing.T) {
			path := t.TempDir()
			w, err := dir.Create(path)
			if err != nil {
				t.Fatal(err)
			}
			dirtest.Fill(t, w)
			img := dirtest.Image(t)
			spoil(img)
			if err := w.Commit(img); err == nil {
				t.Error("committed")
			}
			if err := w.Abort(); err != nil {
				t.Error(err)
			}
			wantNames(t, path)
		})
	}
}

// TestHostile checks what Open refuses, and that it refuses at once.
func TestHostile(t *testing.T) {
	remove := func(t *testing.T, name string) {
		t.Helper()
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
	move := func(t *testing.T, path, name string) string {
		t.Helper()
		away := filepath.Join(t.TempDir(), "away")
		if err := os.Rename(filepath.Join(path, name), away); err != nil {
			t.Fatal(err)
		}
		return away
	}
	for name, tt := range map[string]struct {
		spoil func(t *testing.T, path string) error
		want  error
	}{
		"state is a link": {func(t *testing.T, p string) error {
			return os.Symlink(move(t, p, blob.StateFile), filepath.Join(p, blob.StateFile))
		}, errs.ErrCorrupt},
		"state is a link beside": {func(t *testing.T, p string) error {
			if err := os.Rename(filepath.Join(p, blob.StateFile), filepath.Join(p, "x")); err != nil {
				return err
			}
			return os.Symlink("x", filepath.Join(p, blob.StateFile))
		}, errs.ErrCorrupt},
		"state is a FIFO": {func(t *testing.T, p string) error {
			remove(t, filepath.Join(p, blob.StateFile))
			return syscall.Mkfifo(filepath.Join(p, blob.StateFile), 0o600)
		}, errs.ErrCorrupt},
		"state is a directory": {func(t *testing.T, p string) error {
			remove(t, filepath.Join(p, blob.StateFile))
			return os.Mkdir(filepath.Join(p, blob.StateFile), 0o700)
		}, errs.ErrCorrupt},
		"state is cut": {func(_ *testing.T, p string) error {
			return os.Truncate(filepath.Join(p, blob.StateFile), 200)
		}, errs.ErrCorrupt},
		"state is a hole": {func(_ *testing.T, p string) error {
			name := filepath.Join(p, blob.StateFile)
			return errors.Join(os.Truncate(name, 0), os.Truncate(name, 1<<40))
		}, errs.ErrCorrupt},
		"no state": {func(t *testing.T, p string) error {
			remove(t, filepath.Join(p, blob.StateFile))
			return nil
		}, errs.ErrNotImage},
		"pages are missing": {func(t *testing.T, p string) error {
			remove(t, filepath.Join(p, dirtest.Pages))
			return nil
		}, errs.ErrCorrupt},
		"pages are cut": {func(_ *testing.T, p string) error {
			return os.Truncate(filepath.Join(p, dirtest.Pages), 4096)
		}, errs.ErrCorrupt},
		"pages are too long": {func(_ *testing.T, p string) error {
			return os.Truncate(filepath.Join(p, dirtest.Pages), 1<<20)
		}, errs.ErrCorrupt},
		"pages are a link": {func(t *testing.T, p string) error {
			return os.Symlink(move(t, p, dirtest.Pages), filepath.Join(p, dirtest.Pages))
		}, errs.ErrCorrupt},
		"archive is a FIFO": {func(t *testing.T, p string) error {
			remove(t, filepath.Join(p, dirtest.Tmpfs))
			return syscall.Mkfifo(filepath.Join(p, dirtest.Tmpfs), 0o600)
		}, errs.ErrCorrupt},
	} {
		t.Run(name, func(t *testing.T) {
			path := t.TempDir()
			dirtest.Write(t, path)
			if err := tt.spoil(t, path); err != nil {
				t.Fatal(err)
			}
			if d, err := dir.Open(path); !errors.Is(err, tt.want) {
				t.Errorf("Open: %v, %v; want %v", d, err, tt.want)
			}
		})
	}
}

func TestOpenNamesCRIU(t *testing.T) {
	path := t.TempDir()
	if err := os.WriteFile(filepath.Join(path, "inventory.img"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := dir.Open(path)
	if !errors.Is(err, errs.ErrNotImage) || !strings.Contains(err.Error(), "CRIU") {
		t.Errorf("Open: %v", err)
	}
}
