package shim

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/containerd/errdefs"
)

const (
	// RestoreAnnotation on a container names the image directory that it is
	// restored from instead of being started. With ".NAME" appended it holds
	// only for the container of that name in a pod. containerd passes a pod's
	// annotations on only as far as its configuration allows them.
	//
	// Beside it stasis itself reads stasis.dev/lazy-pages: "true" from the bundle,
	// for any restore: memory is filled while the container runs.
	RestoreAnnotation = "stasis.dev/restore-from"

	criType    = "io.kubernetes.cri.container-type"
	criName    = "io.kubernetes.cri.container-name"
	criSandbox = "sandbox"
)

// restoreFrom returns the image directory that a bundle's annotations ask for,
// or "". Errors wrap [errdefs.ErrInvalidArgument] when the directory won't do.
func restoreFrom(bundle string) (string, error) {
	b, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil {
		return "", err
	}
	var spec struct {
		Annotations map[string]string `json:"annotations"`
	}
	if err := json.Unmarshal(b, &spec); err != nil {
		return "", fmt.Errorf("config.json: %w", err)
	}
	dir := annotated(spec.Annotations)
	if dir == "" {
		return "", nil
	}
	return dir, checkImageDir(dir)
}

func annotated(a map[string]string) string {
	if a[criType] == criSandbox {
		return "" // a pod's annotations reach its pause container too
	}
	if dir, ok := a[RestoreAnnotation+"."+a[criName]]; ok {
		return dir
	}
	return a[RestoreAnnotation]
}

// checkImageDir refuses a directory that others can write to: whoever writes
// an image decides what runs in the container.
func checkImageDir(dir string) error {
	if !filepath.IsAbs(dir) {
		return fmt.Errorf("%s %q is not an absolute path: %w", RestoreAnnotation, dir, errdefs.ErrInvalidArgument)
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("%s: %w: %w", RestoreAnnotation, err, errdefs.ErrInvalidArgument)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.IsDir() || int(st.Uid) != os.Geteuid() || info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s %s: mode %s, want a directory that only its owner, the shim's user, writes: %w",
			RestoreAnnotation, dir, info.Mode(), errdefs.ErrInvalidArgument)
	}
	return nil
}
