package dir_test

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/blob/dir"
	"github.com/stasis-cr/stasis/cr/blob/dir/dirtest"
	"github.com/stasis-cr/stasis/cr/fault"
)

// pathEnv makes TestCrashChild write a checkpoint; otherwise it does nothing.
const pathEnv = "STASIS_TEST_DIR"

// points are the steps of a writer, and whether the new checkpoint exists when
// one is reached.
var points = []struct {
	name string
	done bool
}{
	{"dir-create", false},
	{"dir-state", false},
	{"dir-renamed", false},
	{"dir-publish", false},
	{"dir-published", true},
}

// TestCrashChild is the process that dies. Fault points are armed by the
// environment, once for a process, so it is one of its own.
func TestCrashChild(t *testing.T) {
	path := os.Getenv(pathEnv)
	if path == "" {
		t.Skip("a part of TestCrash")
	}
	w, err := dir.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := write(t, w); err != nil {
		if aerr := w.Abort(); aerr != nil {
			t.Fatal(aerr)
		}
		t.Fatal(err)
	}
}

func write(t *testing.T, w *dir.Writer) error {
	t.Helper()
	img := dirtest.Image(t)
	img.Container.Id = "new"
	sizes := map[string]uint64{dirtest.Tmpfs: 1024}
	for _, f := range img.Pages.OwnFiles() {
		sizes[f.Name] = f.Size
	}
	for name, n := range sizes {
		f, err := w.Create(name)
		if err != nil {
			return err
		}
		if err := f.Truncate(int64(n)); err != nil {
			return err
		}
	}
	return w.Commit(img)
}

// child writes a checkpoint to path in a process with a fault.
func child(t *testing.T, path, faultSpec string) error {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestCrashChild$")
	cmd.Env = append(os.Environ(), pathEnv+"="+path, fault.Env+"="+faultSpec)
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Fatalf("fault %s did not strike: %s", faultSpec, out)
	}
	return err
}

// TestCrash kills a writer at each step, in an empty directory and over an older
// checkpoint. Whatever is visible afterwards must be whole, and the next writer
// must clean up.
func TestCrash(t *testing.T) {
	for _, p := range points {
		for _, older := range []bool{false, true} {
			name := p.name
			if older {
				name += "/older"
			}
			t.Run(name, func(t *testing.T) {
				path := t.TempDir()
				if older {
					dirtest.Write(t, path)
				}
				var exit *exec.ExitError
				if err := child(t, path, p.name+"=kill"); !errors.As(err, &exit) ||
					exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
					t.Fatalf("the writer ended otherwise: %v", err)
				}
				wantVisible(t, path, older, p.done)
				dirtest.Write(t, path)
				open(t, path)
				for _, n := range names(t, path) {
					if strings.HasPrefix(n, ".") {
						t.Errorf("%s was left", n)
					}
				}
			})
		}
	}
}

// TestFail lets each step fail: Abort must leave what was there before, or at
// the last step, when the older checkpoint's name is gone, nothing.
func TestFail(t *testing.T) {
	for _, p := range points {
		t.Run(p.name, func(t *testing.T) {
			path := t.TempDir()
			child(t, path, p.name+"=error") //nolint:errcheck // it is not nil
			wantNames(t, path)
			dirtest.Write(t, path)
			child(t, path, p.name+"=error") //nolint:errcheck // it is not nil
			if p.done {
				wantNames(t, path)
				return
			}
			wantNames(t, path, blob.StateFile, dirtest.Pages, dirtest.More, dirtest.Tmpfs)
			wantVisible(t, path, true, false)
		})
	}
}

// wantVisible checks which checkpoint is in path.
func wantVisible(t *testing.T, path string, older, newer bool) {
	t.Helper()
	if !older && !newer {
		if d, err := dir.Open(path); err == nil {
			t.Errorf("a half-made checkpoint of %q is visible", d.Image().Container.GetId())
		}
		return
	}
	want := "c1"
	if newer {
		want = "new"
	}
	if got := open(t, path).Image().Container.GetId(); got != want {
		t.Errorf("the checkpoint is that of %q, want %q", got, want)
	}
}
