package dir_test

import (
	"crypto/sha256"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/blob/dir"
	"github.com/stasis-cr/stasis/cr/blob/dir/dirtest"
	"github.com/stasis-cr/stasis/cr/errs"
)

func receive(t *testing.T, path string) *dir.Receiver {
	t.Helper()
	r, err := dir.Receive(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// writes writes b, whatever f holds.
func writes(b []byte) func(*os.File) error {
	return func(f *os.File) error {
		_, err := f.WriteAt(b, 0)
		return err
	}
}

// is says whether a file holds b.
func is(b []byte) func(*os.File) error {
	return func(f *os.File) error {
		got := make([]byte, len(b)+1)
		if n, _ := f.ReadAt(got, 0); string(got[:n]) != string(b) {
			return errs.ErrCorrupt
		}
		return nil
	}
}

func never(t *testing.T) func(*os.File) error {
	t.Helper()
	return func(*os.File) error {
		t.Error("it is fetched, and was there")
		return nil
	}
}

func TestReceive(t *testing.T) {
	from, to := filepath.Join(t.TempDir(), "from"), filepath.Join(t.TempDir(), "to")
	dirtest.Write(t, from)
	state, err := os.ReadFile(filepath.Join(from, blob.StateFile))
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(state)
	r := receive(t, to)
	if _, err := dir.Receive(to); !errors.Is(err, dir.ErrBusy) {
		t.Errorf("two at once: %v", err)
	}
	if _, err := r.State(sum[:], writes([]byte("damaged"))); !errors.Is(err, errs.ErrCorrupt) {
		t.Errorf("damaged state: %v", err)
	}
	wantNames(t, to) // nobody goes on with what is wrong
	if _, err := r.State(sum[:], writes(state)); err != nil {
		t.Fatal(err)
	}
	if err := r.Take(dirtest.Tmpfs, is([]byte("tar")), writes([]byte("tar"))); err != nil {
		t.Fatal(err)
	}
	wantNames(t, to, ".stasis-state.img.tmp", dirtest.Tmpfs)
	if err := r.Commit(); err != nil {
		t.Fatal(err)
	}
	wantNames(t, to, blob.StateFile, dirtest.Tmpfs)
	if img, err := r.State(sum[:], never(t)); err != nil || img.Host.Machine != "x86_64" {
		t.Errorf("%v", err)
	}
	if err := r.Take(dirtest.Tmpfs, is([]byte("tar")), never(t)); err != nil {
		t.Error(err)
	}
	if _, err := r.State(make([]byte, 32), never(t)); !errors.Is(err, fs.ErrExist) {
		t.Errorf("another checkpoint: %v", err)
	}
}

// TestReceiveParts: a part of the same file is gone on with, one of another is
// brought again, and what is no file of ours is not written to.
func TestReceiveParts(t *testing.T) {
	to, victim := t.TempDir(), filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(victim, []byte("as it was"), 0o600); err != nil {
		t.Fatal(err)
	}
	temp := filepath.Join(to, ".stasis-a.tmp")
	appends := func(f *os.File) error { // what lacks behind the part that is there
		st, err := f.Stat()
		if err != nil {
			return err
		}
		_, err = f.WriteAt([]byte("abcdef")[min(st.Size(), 6):], st.Size())
		return err
	}
	r := receive(t, to)
	for name, prepare := range map[string]func() error{
		"nothing": func() error { return nil },
		"part":    func() error { return os.WriteFile(temp, []byte("abc"), 0o600) },
		"other":   func() error { return os.WriteFile(temp, []byte("xyz"), 0o600) },
		"link":    func() error { return os.Symlink(victim, temp) },
		"old":     func() error { return os.WriteFile(filepath.Join(to, "a"), []byte("old"), 0o600) },
	} {
		if err := prepare(); err != nil {
			t.Fatal(err)
		}
		if err := r.Take("a", is([]byte("abcdef")), appends); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		wantNames(t, to, "a")
		if err := os.Remove(filepath.Join(to, "a")); err != nil {
			t.Fatal(err)
		}
	}
	if b, err := os.ReadFile(victim); err != nil || string(b) != "as it was" {
		t.Errorf("%q, %v", b, err)
	}
	broken := errors.New("cut")
	cut := func(f *os.File) error { return errors.Join(writes([]byte("abc"))(f), broken) }
	if err := r.Take("a", is([]byte("abcdef")), cut); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
	wantNames(t, to, ".stasis-a.tmp") // for the next one
	if err := os.Symlink(victim, filepath.Join(to, "b")); err != nil {
		t.Fatal(err)
	}
	if err := r.Take("b", is([]byte("b")), writes([]byte("b"))); err != nil {
		t.Error(err)
	}
	if st, err := os.Lstat(filepath.Join(to, "b")); err != nil || !st.Mode().IsRegular() {
		t.Errorf("a link in the place of a file: %v, %v", st, err)
	}
	if b, err := os.ReadFile(victim); err != nil || string(b) != "as it was" {
		t.Errorf("%q, %v", b, err)
	}
}
