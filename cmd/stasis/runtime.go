package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// runtimeEnv names the OCI runtime where --runtime does not.
const runtimeEnv = "STASIS_RUNTIME"

// defaultPath is searched if the caller gave no PATH: conmon and podman pass
// hardly any environment.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// passThrough becomes the host's runtime. args begin with the verb. It returns
// only if that fails.
func (a *app) passThrough(g *global, args []string) error {
	path, err := a.findRuntime(g)
	if err != nil {
		return err
	}
	argv := append(append([]string{path}, g.pass...), args...)
	if err := a.exec(path, argv, a.env); err != nil {
		return fmt.Errorf("OCI runtime %s: %w", path, err)
	}
	return nil
}

// findRuntime returns the path of the OCI runtime. This program itself is never
// the answer, though it may be installed under the name of a runtime.
func (a *app) findRuntime(g *global) (string, error) {
	name := g.runtime
	if name == "" {
		name = a.getenv(runtimeEnv)
	}
	if name != "" {
		return a.lookPath(name)
	}
	for _, name := range []string{"runc", "crun"} {
		if path, err := a.lookPath(name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("no OCI runtime: neither runc nor crun is in PATH; name one with --runtime or %s", runtimeEnv)
}

// lookPath finds an executable, by path or in PATH. What is in the way of one
// that exists is told rather than that there is none.
func (a *app) lookPath(name string) (string, error) {
	candidates := []string{name}
	if !strings.Contains(name, "/") {
		candidates = a.inPath(name)
	}
	err := fmt.Errorf("not found in PATH: %w", fs.ErrNotExist)
	for _, c := range candidates {
		e := usable(c)
		if e == nil {
			return filepath.Abs(c)
		}
		if c == name || !errors.Is(e, fs.ErrNotExist) {
			err = e
		}
	}
	return "", fmt.Errorf("OCI runtime %s: %w", name, err)
}

// inPath is name in each directory of PATH. Relative ones are left out: whoever
// starts us chooses the current directory.
func (a *app) inPath(name string) []string {
	path := a.getenv("PATH")
	if path == "" {
		path = defaultPath
	}
	var list []string
	for _, dir := range filepath.SplitList(path) {
		if filepath.IsAbs(dir) {
			list = append(list, filepath.Join(dir, name))
		}
	}
	return list
}

// usable tells why path is no runtime that we could start.
func usable(path string) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() || st.Mode()&0o111 == 0 {
		return fmt.Errorf("%s: %w", path, fs.ErrPermission)
	}
	if self, err := os.Stat("/proc/self/exe"); err == nil && os.SameFile(st, self) {
		return fmt.Errorf("%s is stasis itself", path)
	}
	return nil
}
