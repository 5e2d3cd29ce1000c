package shim

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestIsTempName(t *testing.T) {
	parents := []string{"", "/run/x", "/tmp"}
	for path, want := range map[string]bool{
		"/tmp/ctrd-checkpoint123":      true,
		"/run/x/ctrd-checkpoint0":      true,
		"/tmp/ctrd-checkpoint":         false,
		"/tmp/ctrd-checkpoint12a":      false,
		"/tmp/ctrd-checkpoint-1":       false,
		"/tmp/x/ctrd-checkpoint1":      false,
		"/tmp/../tmp/ctrd-checkpoint1": false,
		"/tmp/ctrd-checkpoint1/":       false,
		"/tmp/ctrd-checkpoint1/..":     false,
		"/var/ctrd-checkpoint1":        false,
		"ctrd-checkpoint1":             false,
		"/ctrd-checkpoint1":            false,
		"/tmp":                         false,
		"":                             false,
	} {
		if got := isTempName(path, parents); got != want {
			t.Errorf("%q: %t", path, got)
		}
	}
}

// imageDir makes a directory as containerd would, with some files.
func imageDir(t *testing.T, parent, name string, files ...string) string {
	t.Helper()
	dir := filepath.Join(parent, name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if err := os.WriteFile(filepath.Join(dir, f), []byte(f), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestRemoveTemp(t *testing.T) {
	parent := t.TempDir()
	dir := imageDir(t, parent, "ctrd-checkpoint1", "state.img", "pages-1.img")
	for range 2 { // the second time it is gone
		if err := removeTemp(dir, []string{parent}); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there: %v", dir, err)
		}
	}
}

func TestRemoveTempLeaves(t *testing.T) {
	for _, tc := range []struct {
		name    string
		base    string
		prepare func(t *testing.T, dir string)
	}{
		{"name", "checkpoint1", func(*testing.T, string) {}},
		{"readable by others", "ctrd-checkpoint1", func(t *testing.T, dir string) { must(t, os.Chmod(dir, 0o755)) }},
		{"subdirectory", "ctrd-checkpoint1", func(t *testing.T, dir string) { must(t, os.Mkdir(dir+"/sub", 0o700)) }},
		{"link inside", "ctrd-checkpoint1", func(t *testing.T, dir string) { must(t, os.Symlink("/", dir+"/link")) }},
		{"link itself", "ctrd-checkpoint1", func(t *testing.T, dir string) {
			must(t, os.Rename(dir, dir+"-real"))
			must(t, os.Symlink(dir+"-real", dir))
		}},
		{"file itself", "ctrd-checkpoint1", func(t *testing.T, dir string) {
			must(t, os.Rename(dir, dir+"-real"))
			must(t, os.WriteFile(dir, nil, 0o600))
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			parent := t.TempDir()
			dir := imageDir(t, parent, tc.base, "keep")
			tc.prepare(t, dir)
			if err := removeTemp(dir, []string{parent}); !errors.Is(err, errNotTemp) {
				t.Errorf("%v, want %v", err, errNotTemp)
			}
			kept := filepath.Join(dir, "keep")
			if _, err := os.Lstat(dir + "-real"); err == nil {
				kept = filepath.Join(dir+"-real", "keep")
			}
			if _, err := os.Lstat(kept); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestRemoveTempOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	parent := t.TempDir()
	dir := imageDir(t, parent, "ctrd-checkpoint1", "keep")
	must(t, os.Chown(dir, 1000, 1000))
	if err := removeTemp(dir, []string{parent}); !errors.Is(err, errNotTemp) {
		t.Errorf("%v, want %v", err, errNotTemp)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
