// Package harness runs the real neighbours of stasis for tests and the demo:
// containerd with a root, state and socket of its own, images made of this
// host's programs, and either cgroup version.
//
// Nothing in it touches a containerd, a container or an image that it did not
// make itself.
package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// Bins are the binaries under test.
type Bins struct {
	Dir    string // holds both, and nothing else
	Stasis string
	Shim   string
}

// RepoRoot returns the directory of go.mod, upwards from the working directory.
func RepoRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", errors.New("no go.mod above the working directory")
		}
		dir = up
	}
}

// BuildIn compiles the binaries into dir, unless STASIS_BINS has them already.
func BuildIn(ctx context.Context, dir string) (Bins, error) {
	if ready := os.Getenv("STASIS_BINS"); ready != "" {
		return binsIn(ready), nil
	}
	root, err := RepoRoot()
	if err != nil {
		return Bins{}, err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-o", dir+"/", "./cmd/...")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return Bins{}, fmt.Errorf("go build: %w\n%s", err, out)
	}
	return binsIn(dir), nil
}

func binsIn(dir string) Bins {
	return Bins{
		Dir:    dir,
		Stasis: filepath.Join(dir, "stasis"),
		Shim:   filepath.Join(dir, "containerd-shim-stasis-v1"),
	}
}

// shared is the one build of a test process.
var shared struct {
	once sync.Once
	dir  string
	bins Bins
	err  error
}

// Build returns the binaries under test, from [BuildIn] once in each process.
// The package's TestMain must call [Main] for them to be removed.
func Build(tb testing.TB) Bins {
	tb.Helper()
	shared.once.Do(func() {
		if shared.dir, shared.err = os.MkdirTemp("", "stasis-bin-"); shared.err == nil {
			shared.bins, shared.err = BuildIn(context.Background(), shared.dir)
		}
	})
	if shared.err != nil {
		tb.Fatal(shared.err)
	}
	return shared.bins
}

// Main runs the tests of a package, in the cgroup mode that STASIS_CGROUP asks
// for, and cleans up what [Build] made. It is for TestMain, with os.Exit.
func Main(m *testing.M) int {
	if code, done := InCgroupMode(); done {
		return code
	}
	code := m.Run()
	if shared.dir != "" {
		if err := os.RemoveAll(shared.dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	return code
}

// Tool finds a program that the tests need: in .tools/bin of the repository
// (see make tools), in the directory STASIS_TOOLS, then on PATH.
func Tool(name string) (string, error) {
	var dirs []string
	if root, err := RepoRoot(); err == nil {
		dirs = append(dirs, filepath.Join(root, ".tools", "bin"))
	}
	if d := os.Getenv("STASIS_TOOLS"); d != "" {
		dirs = append(dirs, d)
	}
	for _, d := range dirs {
		if p, err := exec.LookPath(filepath.Join(d, name)); err == nil {
			return p, nil
		}
	}
	p, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("%s: not in .tools/bin (make tools), $STASIS_TOOLS or PATH", name)
	}
	return p, nil
}

// Missing ends a test that this host can't run: a failure in CI, where the host
// is meant to have everything, and a skip elsewhere.
func Missing(tb testing.TB, what string) {
	tb.Helper()
	if os.Getenv("CI") == "true" {
		tb.Fatalf("this host lacks %s", what)
	}
	tb.Skipf("this host lacks %s", what)
}

// NeedRoot ends a test without root.
func NeedRoot(tb testing.TB) {
	tb.Helper()
	if os.Geteuid() != 0 {
		Missing(tb, "root")
	}
}

// NeedTools ends a test unless every named tool is there.
func NeedTools(tb testing.TB, names ...string) {
	tb.Helper()
	for _, n := range names {
		if _, err := Tool(n); err != nil {
			Missing(tb, err.Error())
		}
	}
}

// Run runs a command and returns its standard output. The error holds the
// command line and what it said on standard error.
func Run(ctx context.Context, env []string, name string, args ...string) (string, error) {
	out, _, err := Output(ctx, env, name, args...)
	return out, err
}

// Output is [Run], with what the command said on standard error.
func Output(ctx context.Context, env []string, name string, args ...string) (out, diag string, err error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = env
	var o, e bytes.Buffer
	cmd.Stdout, cmd.Stderr = &o, &e
	if err := cmd.Run(); err != nil {
		line := strings.Join(append([]string{filepath.Base(name)}, args...), " ")
		return o.String(), e.String(), fmt.Errorf("%s: %w: %s", line, err, strings.TrimSpace(e.String()))
	}
	return o.String(), e.String(), nil
}

// Poll calls f until it answers true, every 10 ms. When the time is up it
// returns an error that names what was waited for, and f's last error.
func Poll(ctx context.Context, d time.Duration, what string, f func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, err := f()
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("%s: not within %s", what, d), err)
		case <-tick.C:
		}
	}
}

// DirSize returns the bytes of the regular files below dir.
func DirSize(dir string) (int64, error) {
	var sum int64
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			sum += info.Size()
		}
		return err
	})
	return sum, err
}
