package shim

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sync"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/errdefs"
	runc "github.com/containerd/go-runc"
)

const (
	// command is the runtime that the shim runs.
	command = "stasis"
	// hostEnv tells stasis which runtime of the host to build containers with.
	hostEnv = "STASIS_RUNTIME"
	// hostFile, in the bundle, keeps that choice for the clean-up after a shim
	// that died, which runs in another process.
	hostFile = "stasis-runtime"
)

// UseStasis makes the stasis command the runtime of every container whose
// options don't name another. The one beside this program comes first, so that
// shim and engine are of one version, then PATH.
func UseStasis() error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("own path: %w", err)
	}
	path, err := findStasis(filepath.Dir(self))
	if err != nil {
		return err
	}
	runc.DefaultCommand = path
	return nil
}

func findStasis(dir string) (string, error) {
	beside := filepath.Join(dir, command)
	if _, err := exec.LookPath(beside); err == nil {
		return beside, nil
	}
	path, err := exec.LookPath(command)
	if err != nil {
		return "", fmt.Errorf("%s is neither in %s nor on PATH: %w", command, dir, err)
	}
	return filepath.Abs(path)
}

// takeHost removes the host's runtime from the options, which leaves stasis to
// be run, and returns it. A BinaryName that is a stasis itself stays.
func takeHost(o *options.Options) string {
	if o.BinaryName == "" || filepath.Base(o.BinaryName) == command {
		return ""
	}
	host := o.BinaryName
	o.BinaryName = ""
	return host
}

// hostRuntime is the host's runtime of this shim's containers. The commands of
// all of them share the shim's environment, so there can be only one.
type hostRuntime struct {
	mu     sync.Mutex
	chosen bool
	path   string // "" leaves the choice to stasis
}

// choose settles the runtime at the first container and refuses another later.
func (h *hostRuntime) choose(path string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.chosen && path != h.path {
		return fmt.Errorf("runtime %q: containers of this group already use %q: %w",
			path, h.path, errdefs.ErrFailedPrecondition)
	}
	h.chosen, h.path = true, path
	return setHost(path)
}

func setHost(path string) error {
	if path == "" {
		return nil
	}
	return os.Setenv(hostEnv, path)
}

// saveHost writes the choice into the bundle, for [loadHost].
func saveHost(bundle, path string) error {
	if path == "" {
		return nil
	}
	return os.WriteFile(filepath.Join(bundle, hostFile), []byte(path), 0o600)
}

// loadHost returns "" for a bundle without a choice.
func loadHost(bundle string) (string, error) {
	b, err := os.ReadFile(filepath.Join(bundle, hostFile))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return string(b), err
}
