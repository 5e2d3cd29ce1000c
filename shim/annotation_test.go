package shim

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
)

func bundle(t *testing.T, annotations map[string]string) string {
	t.Helper()
	b, err := json.Marshal(map[string]any{"ociVersion": "1.2.0", "annotations": annotations})
	must(t, err)
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "config.json"), b, 0o600))
	return dir
}

func TestRestoreFrom(t *testing.T) {
	image := imageDir(t, t.TempDir(), "image")
	for _, tc := range []struct {
		name string
		in   map[string]string
		want string
	}{
		{"none", nil, ""},
		{"plain", map[string]string{RestoreAnnotation: image}, image},
		{"pause container", map[string]string{RestoreAnnotation: image, criType: criSandbox}, ""},
		{"named", map[string]string{RestoreAnnotation + ".app": image, criName: "app"}, image},
		{"another's", map[string]string{RestoreAnnotation + ".app": image, criName: "sidecar"}, ""},
		{"not for this one", map[string]string{
			RestoreAnnotation: image, RestoreAnnotation + ".sidecar": "", criName: "sidecar",
		}, ""},
	} {
		if got, err := restoreFrom(bundle(t, tc.in)); got != tc.want || err != nil {
			t.Errorf("%s: %q, %v; want %q", tc.name, got, err, tc.want)
		}
	}
}

func TestRestoreFromRefuses(t *testing.T) {
	parent := t.TempDir()
	open := imageDir(t, parent, "open")
	must(t, os.Chmod(open, 0o777))
	link := filepath.Join(parent, "link")
	must(t, os.Symlink(imageDir(t, parent, "image"), link))
	for _, dir := range []string{"relative", filepath.Join(parent, "none"), open, link} {
		_, err := restoreFrom(bundle(t, map[string]string{RestoreAnnotation: dir}))
		if !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: %v, want an invalid argument", dir, err)
		}
	}
}
