//go:build integration

package integration

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/blob/dir"
	"github.com/stasis-cr/stasis/integration/harness"
	"github.com/stasis-cr/stasis/integration/progs/box"
)

// TestFaultTarget asks for a checkpoint where it can't be written. The container
// must not notice, and nothing may be there under the name of an image.
func TestFaultTarget(t *testing.T) {
	harness.NeedRoot(t)
	e := box.Engine{Runtime: objectRuntime(t), Save: harness.Build(t).Stasis}
	r := newTrial(t, e, buildFaults(t), victims()[1])
	r.start()
	was := r.baseline()
	for _, c := range []struct {
		name, options string // of a tmpfs
		flags         uintptr
		why           string
	}{
		{"full", "size=64k", 0, "no space left on device"},
		{"full in the middle", "size=2m", 0, "no space left on device"},
		{"no inodes", "nr_inodes=1", 0, "no space left on device"},
		{"read-only", "", unix.MS_RDONLY, "read-only file system"},
	} {
		for _, state := range []string{"running", "paused"} {
			t.Run(c.name+"/"+state, func(t *testing.T) {
				r := r.in(t)
				at := t.TempDir()
				if err := unix.Mount("tmpfs", at, "tmpfs", c.flags, c.options); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() {
					if err := unix.Unmount(at, 0); err != nil {
						t.Error(err)
					}
				})
				r.notSaved(filepath.Join(at, "image"), state, c.why)
				r.goesOn(was, state, false)
			})
		}
	}
	t.Run("a file", func(t *testing.T) {
		r := r.in(t)
		at := filepath.Join(t.TempDir(), "image")
		if err := os.WriteFile(at, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		r.oneLine(r.save("", at, "--leave-running"), "not a directory")
		r.goesOn(was, "running", false)
	})
}

func (r *trial) notSaved(image, state, why string) {
	r.Helper()
	if state == "paused" {
		r.pause()
	}
	r.oneLine(r.save("", image, "--leave-running"), why)
	if exists(image) {
		r.Error("the image directory is there")
	}
}

// TestFaultNoContainer asks for a checkpoint of what does not run.
func TestFaultNoContainer(t *testing.T) {
	harness.NeedRoot(t)
	e := box.Engine{Runtime: objectRuntime(t), Save: harness.Build(t).Stasis}
	r := newTrial(t, e, buildFaults(t), victims()[0])
	image := filepath.Join(t.TempDir(), "image")
	r.oneLine(r.save("", image), "does not exist")
	r.start()
	r.must(r.runtime("kill", r.ID, "KILL"))
	r.poll("end of the container", func() (bool, error) {
		r.reap()
		return r.status() == "stopped", nil
	})
	r.oneLine(r.save("", image), "not running")
	if exists(image) {
		t.Error("the image directory is there")
	}
}

// damage is one thing that is wrong with an image.
type damage struct {
	name string
	do   func(t *testing.T, image string)
	why  string
}

func damages() []damage {
	host := func(f func(*blob.Host)) func(*testing.T, string) {
		return func(t *testing.T, image string) { t.Helper(); editHost(t, image, f) }
	}
	list := []damage{
		{"foreign machine", host(func(h *blob.Host) { h.Machine = "aarch64" }), "aarch64"},
		{"foreign page size", host(func(h *blob.Host) { h.PageSize = 65536 }), "65536"},
		{"foreign vdso", host(func(h *blob.Host) { h.VdsoDigest[0] ^= 1 }), "vdso"},
	}
	for _, file := range []string{"state.img", "pages.img", "tmpfs-1.tar"} {
		list = append(list,
			damage{file + " missing", func(t *testing.T, image string) {
				t.Helper()
				if err := os.Remove(filepath.Join(image, file)); err != nil {
					t.Fatal(err)
				}
			}, ""},
			damage{file + " empty", cut(file, func(int) int { return 0 }), ""},
			damage{file + " halved", cut(file, func(n int) int { return n / 2 }), ""},
			damage{file + " one byte short", cut(file, func(n int) int { return n - 1 }), ""},
			damage{file + " flipped at the start", flip(file, func(int) int { return 0 }), ""},
			damage{file + " flipped in the middle", flip(file, func(n int) int { return n / 2 }), ""},
		)
	}
	for i := range 6 {
		for _, file := range []string{"state.img", "pages.img"} {
			list = append(list, damage{fmt.Sprintf("%s flipped anywhere, %d", file, i), flip(file, rand.IntN), ""})
		}
	}
	return append(list, damage{"state.img flipped at the end", flip("state.img", func(n int) int { return n - 1 }), ""})
}

func change(t *testing.T, path string, f func([]byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(path, f(b), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func cut(file string, to func(int) int) func(*testing.T, string) {
	return func(t *testing.T, image string) {
		t.Helper()
		change(t, filepath.Join(image, file), func(b []byte) []byte { return b[:to(len(b))] })
	}
}

func flip(file string, at func(int) int) func(*testing.T, string) {
	return func(t *testing.T, image string) {
		t.Helper()
		change(t, filepath.Join(image, file), func(b []byte) []byte {
			i := at(len(b))
			t.Logf("%s: byte %d changed", file, i)
			b[i] ^= 0x10
			return b
		})
	}
}

func editHost(t *testing.T, image string, f func(*blob.Host)) {
	t.Helper()
	d, err := dir.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	img := d.Image()
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	f(img.Host)
	out, err := os.OpenFile(filepath.Join(image, blob.StateFile), os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if err := blob.Write(out, img); err != nil {
		t.Fatal(err)
	}
}

// TestFaultImage restores images that are damaged or not for this host: each is
// refused in one line, and nothing is left. To verify finds the damage, too. The
// image that they were made from is good.
func TestFaultImage(t *testing.T) {
	harness.NeedRoot(t)
	e := box.Engine{Runtime: objectRuntime(t), Save: harness.Build(t).Stasis}
	r, good := saved(t, e, buildFaults(t))
	for _, d := range damages() {
		t.Run(strings.ReplaceAll(d.name, " ", "_"), func(t *testing.T) {
			r := r.in(t)
			image := filepath.Join(t.TempDir(), "image")
			if err := os.CopyFS(image, os.DirFS(good)); err != nil {
				t.Fatal(err)
			}
			d.do(t, image)
			o := r.load("", image)
			r.oneLine(o, d.why)
			t.Log(o.stderr)
			if words := []string{"damage", "missing", "not a stasis", "host", "version"}; !slices.ContainsFunc(words,
				func(w string) bool { return strings.Contains(o.stderr, w) }) {
				t.Errorf("stderr names no reason: %q", o.stderr)
			}
			r.gone()
			foreign := strings.HasPrefix(d.name, "foreign") && d.why != "65536" // whole, but not for this host
			if o := r.run("", r.Engine.Save, "verify", image); o.killed || (o.status == 0) != foreign {
				t.Errorf("verify: exit %d, killed %v: %s", o.status, o.killed, o.stderr)
			}
		})
	}
	r.must(r.run("", r.Engine.Save, "verify", good))
	r.must(r.load("", good))
	r.progress()
}
