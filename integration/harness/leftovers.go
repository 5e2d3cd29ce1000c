package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// runtimeState is where containerd's shims keep the runtime's state, whatever
// the configuration says (cmd/containerd-shim-runc-v2/process/utils.go).
const runtimeState = "/run/containerd/runc"

// endShims kills the shims that are still there: of containers that could not
// be removed. It tells them by containerd's socket in their arguments.
func (c *Containerd) endShims(ctx context.Context) error {
	pids, err := c.Shims()
	if err != nil || len(pids) == 0 {
		return err
	}
	// A shim whose last task is deleted ends by itself, a moment later.
	if err = Poll(ctx, stopTime/5, "end of the shims", c.noShims); err == nil {
		return nil
	}
	for _, pid := range pids {
		if e := unix.Kill(pid, unix.SIGKILL); e != nil && !errors.Is(e, unix.ESRCH) {
			err = errors.Join(err, fmt.Errorf("shim %d: %w", pid, e))
		}
	}
	return errors.Join(err, Poll(ctx, stopTime, "death of the shims", c.noShims))
}

func (c *Containerd) noShims() (bool, error) {
	pids, err := c.Shims()
	return err == nil && len(pids) == 0, err
}

// Shims returns the pids of this containerd's shims.
func (c *Containerd) Shims() ([]int, error) {
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, l := range lines {
		b, err := os.ReadFile(l)
		if err != nil {
			continue // gone meanwhile
		}
		args := bytes.Split(b, []byte{0})
		if !slices.ContainsFunc(args, func(a []byte) bool { return string(a) == c.Address }) ||
			!bytes.HasPrefix([]byte(filepath.Base(string(args[0]))), []byte("containerd-shim-")) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(l)))
		if err != nil {
			return nil, err
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

func unmountBelow(dir string) error {
	mounts, err := mountsBelow(dir)
	for _, m := range slices.Backward(mounts) {
		if e := unix.Unmount(m, unix.MNT_DETACH); e != nil {
			err = errors.Join(err, fmt.Errorf("unmount %s: %w", m, e))
		}
	}
	return err
}

// Outside lists what containers of this containerd have outside its directory:
// runtime state and cgroups.
func (c *Containerd) Outside() []string {
	patterns := []string{
		filepath.Join(runtimeState, c.Namespace, "*"),
		filepath.Join(cgroupRoot, c.Namespace, "*", "cgroup.procs"),
		filepath.Join(cgroupRoot, "*", c.Namespace, "*", "cgroup.procs"),
	}
	var left []string
	for _, p := range patterns {
		m, _ := filepath.Glob(p) // the only error is a bad pattern
		left = append(left, m...)
	}
	return left
}

// removeOutside removes the namespace's runtime state and its cgroups.
func (c *Containerd) removeOutside() error {
	if c.Namespace == "" {
		return errors.New("no namespace") // would remove every containerd's state
	}
	err := os.RemoveAll(filepath.Join(runtimeState, c.Namespace))
	groups := []string{filepath.Join(cgroupRoot, c.Namespace)}
	below, e := filepath.Glob(filepath.Join(cgroupRoot, "*", c.Namespace))
	err = errors.Join(err, e)
	for _, g := range append(groups, below...) {
		err = errors.Join(err, removeCgroups(g))
	}
	return err
}

// removeCgroups removes a cgroup with its children. Its files can't be removed
// and don't count; one with a task left in it answers EBUSY.
func removeCgroups(dir string) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && d.IsDir() {
			dirs = append(dirs, p)
		}
		return err
	})
	for _, d := range slices.Backward(dirs) {
		if e := unix.Rmdir(d); e != nil && !errors.Is(e, unix.ENOENT) {
			err = errors.Join(err, fmt.Errorf("rmdir %s: %w", d, e))
		}
	}
	return err
}
