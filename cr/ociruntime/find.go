// Package ociruntime finds the OCI runtime of the host, which starts containers and
// does for them what stasis does not do itself.
package ociruntime

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Env names the OCI runtime where the caller does not.
const Env = "STASIS_RUNTIME"

// ErrNone says that nobody named a runtime, and that there is none.
var ErrNone = errors.New("no OCI runtime: neither runc nor crun is in PATH")

// defaultPath is searched if there is no PATH: conmon and podman pass hardly any
// environment.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Find returns the absolute path of the OCI runtime that is named, by a path or by a
// name in PATH. Where name is empty it is the one of Env, else the first of runc and
// crun that there is. This program itself is never the answer, though it may be
// installed under the name of a runtime. getenv reads the environment.
func Find(name string, getenv func(string) string) (string, error) {
	if name == "" {
		name = getenv(Env)
	}
	if name != "" {
		return look(name, getenv)
	}
	for _, name := range []string{"runc", "crun"} {
		if path, err := look(name, getenv); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%w; %s can name one", ErrNone, Env)
}

// look finds an executable, by path or in PATH. What is in the way of one that
// exists is told rather than that there is none.
func look(name string, getenv func(string) string) (string, error) {
	candidates := []string{name}
	if !strings.Contains(name, "/") {
		candidates = InPath(name, getenv)
	}
	err := fmt.Errorf("not found in PATH: %w", fs.ErrNotExist)
	for _, c := range candidates {
		e := Usable(c)
		if e == nil {
			return filepath.Abs(c)
		}
		if c == name || !errors.Is(e, fs.ErrNotExist) {
			err = e
		}
	}
	return "", fmt.Errorf("OCI runtime %s: %w", name, err)
}

// InPath is name in each directory of PATH. Relative ones are left out: whoever
// starts us chooses the current directory.
func InPath(name string, getenv func(string) string) []string {
	path := getenv("PATH")
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

// Usable tells why path is no program that we could start as another one.
func Usable(path string) error {
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
