package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/api/types/runc/options"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/typeurl/v2"

	"github.com/stasis-cr/stasis/cr/ociruntime"
	"github.com/stasis-cr/stasis/shim"
)

const (
	// runcRoot is where a shim has runc keep its state if the runtime's options
	// don't say (containerd's cmd/containerd-shim-runc-v2/process).
	runcRoot = "/run/containerd/runc"
	// command is the shim's runtime, which runs the OCI runtime of the host.
	command = "stasis"
)

// decodeOptions reads the options of a runtime. Those in a file that they only
// name are another machine's.
func decodeOptions(o *object) (*options.Options, error) {
	if o == nil {
		return &options.Options{}, nil
	}
	v, err := typeurl.UnmarshalAny(o)
	if err != nil {
		return nil, fmt.Errorf("runtime options: %w", err)
	}
	if g, ok := v.(*runtimeoptions.Options); ok && len(g.GetConfigBody()) == 0 && g.GetConfigPath() != "" {
		return nil, fmt.Errorf("runtime options are in the file %s: give them to the container itself", g.GetConfigPath())
	}
	return shim.DecodeOptions(o)
}

// stateRoot is the state root of the OCI runtime for containers of a namespace.
func stateRoot(o *options.Options, namespace string) string {
	root := o.GetRoot()
	if root == "" {
		root = runcRoot
	}
	return filepath.Join(root, namespace)
}

// findRuntime returns the path of the OCI runtime that the shim runs. A name in
// the options that is stasis itself says nothing about it.
func findRuntime(binary string) (string, error) {
	if filepath.Base(binary) == command {
		binary = ""
	}
	return ociruntime.Find(binary, os.Getenv)
}

// checkState says clearly that the runtime does not know a container.
func checkState(root, id string) error {
	dir := filepath.Join(root, id)
	_, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("container %s: no state of it in %s; was it started by another runtime than runc? %w",
			id, root, err)
	}
	return err
}
