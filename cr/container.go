package cr

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/manager"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stasis-cr/stasis/cr/procfs"
	"github.com/stasis-cr/stasis/cr/task"
)

// container is what the OCI runtime knows of a running container.
type container struct {
	id        string
	runtime   string // path
	args      []string
	initPID   int
	bundle    string
	externals []string // what its stdio was
	cgroup    cgroups.Manager
	spec      *specs.Spec // nil if the bundle's config is gone

	keepFile string      // where the record of its trackers lies
	kept     *keptRecord // that record; nil: there are none

	// maps are the mappings of its processes at the last look, by host pid.
	maps map[int][]procfs.SMap

	calls task.Calls // seen since it was found
}

// runcState is the part of runc's state.json that is read here
// (libcontainer.BaseState and State).
type runcState struct {
	InitPID     int               `json:"init_process_pid"`
	InitStart   uint64            `json:"init_process_start"`
	Created     time.Time         `json:"created"`
	CgroupPaths map[string]string `json:"cgroup_paths"`
	Externals   []string          `json:"external_descriptors"`
	Config      struct {
		Labels []string `json:"labels"`
	} `json:"config"`
}

// ociState is what every runtime answers to `state` (runtime-spec, state.md).
type ociState struct {
	Status string `json:"status"`
	Pid    int    `json:"pid"`
	Bundle string `json:"bundle"`
}

// findContainer asks the runtime's state for a container that runs. runc's file
// is read directly: starting runc costs more than a small checkpoint.
func findContainer(ctx context.Context, o *CheckpointOptions) (*container, error) {
	c := &container{id: o.ID, runtime: o.Runtime, args: o.RuntimeArgs, maps: map[int][]procfs.SMap{}, calls: task.Calls{}}
	paths, err := c.fromRunc(o.Root)
	if errors.Is(err, fs.ErrNotExist) {
		paths, err = c.fromRuntime(ctx)
	}
	if err != nil {
		return nil, err
	}
	if c.cgroup, err = cgroupOf(c.initPID, paths); err != nil {
		return nil, fmt.Errorf("container %s: cgroup: %w", c.id, err)
	}
	if len(c.externals) == 0 {
		c.externals = stdioLinks(c.initPID)
	}
	if spec, err := readSpec(c.bundle); err == nil {
		c.spec = spec
	}
	c.keepFile = keepFile(o.Root, o.ID)
	c.kept = loadKept(c.keepFile, c.initPID)
	return c, nil
}

func readSpec(bundle string) (*specs.Spec, error) {
	b, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil {
		return nil, err
	}
	spec := &specs.Spec{}
	return spec, json.Unmarshal(b, spec)
}

// stateRoots is where runc keeps its state if it is not told.
func stateRoots(root string) []string {
	if root != "" {
		return []string{root}
	}
	roots := []string{"/run/runc"}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" && os.Geteuid() != 0 {
		roots = append([]string{filepath.Join(dir, "runc")}, roots...)
	}
	return roots
}

// stateDir is where runc keeps what it knows of a container; fs.ErrNotExist: it
// knows none of that name.
func stateDir(root, id string) (string, error) {
	err := fs.ErrNotExist
	for _, r := range stateRoots(root) {
		dir := filepath.Join(r, id)
		if _, err = os.Stat(filepath.Join(dir, "state.json")); err == nil {
			return dir, nil
		}
	}
	return "", err
}

func (c *container) fromRunc(root string) (map[string]string, error) {
	if c.id == "" || c.id != filepath.Base(c.id) || c.id == ".." || c.id == "." {
		return nil, fmt.Errorf("%q is not a container id", c.id)
	}
	dir, err := stateDir(root, c.id)
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(filepath.Join(dir, "state.json"))
	if err != nil {
		return nil, err
	}
	var st runcState
	if err := json.Unmarshal(b, &st); err != nil {
		return nil, fmt.Errorf("container %s: state.json: %w", c.id, err)
	}
	stat, err := procfs.ReadStat(st.InitPID)
	if err != nil || stat.StartTime != st.InitStart || stat.State == 'Z' {
		return nil, fmt.Errorf("container %s is not running", c.id)
	}
	c.initPID, c.externals = st.InitPID, st.Externals
	for _, l := range st.Config.Labels {
		if bundle, ok := strings.CutPrefix(l, "bundle="); ok {
			c.bundle = bundle
		}
	}
	return st.CgroupPaths, nil
}

func (c *container) fromRuntime(ctx context.Context) (map[string]string, error) { //nolint:unparam // as fromRunc's
	out, err := c.run(ctx, "state", c.id)
	if err != nil {
		return nil, err
	}
	var st ociState
	if err := json.Unmarshal(out, &st); err != nil {
		return nil, fmt.Errorf("container %s: %s state: %w", c.id, c.runtime, err)
	}
	if st.Pid <= 0 || (st.Status != "running" && st.Status != "paused") {
		return nil, fmt.Errorf("container %s is %s, not running", c.id, st.Status)
	}
	c.initPID, c.bundle = st.Pid, st.Bundle
	return nil, nil
}

// run runs the OCI runtime and returns what it printed; its own last line of
// complaint is the error.
func (c *container) run(ctx context.Context, args ...string) ([]byte, error) {
	return runRuntime(ctx, c.runtime, append(append([]string(nil), c.args...), args...), nil)
}

func runRuntime(ctx context.Context, runtime string, args []string, prepare func(*exec.Cmd)) ([]byte, error) {
	cmd := exec.CommandContext(ctx, runtime, args...)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if prepare != nil {
		prepare(cmd)
	}
	if err := cmd.Run(); err != nil {
		why := strings.TrimSpace(complaint.String())
		if why == "" {
			why = err.Error()
		}
		return nil, fmt.Errorf("%s %s: %s", filepath.Base(runtime), verbOf(args), strings.ReplaceAll(why, "\n", "; "))
	}
	return out.Bytes(), nil
}

// verbOf is the runtime's command among args, for messages.
func verbOf(args []string) string {
	for _, a := range args {
		switch a {
		case "state", "create", "start", "delete", "kill":
			return a
		}
	}
	return ""
}

// cgroupOf returns the manager of the cgroup that pid is in. paths are the
// runtime's own, by controller; nil: they are looked up.
func cgroupOf(pid int, paths map[string]string) (cgroups.Manager, error) {
	if len(paths) == 0 {
		rel, err := cgroups.ParseCgroupFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		if err != nil {
			return nil, err
		}
		paths = map[string]string{}
		if cgroups.IsCgroup2UnifiedMode() {
			paths[""] = filepath.Join("/sys/fs/cgroup", rel[""])
		} else {
			paths["freezer"] = filepath.Join("/sys/fs/cgroup/freezer", rel["freezer"])
		}
	}
	return manager.NewWithPaths(&cgroups.Cgroup{Resources: &cgroups.Resources{}}, paths)
}

// stdioLinks is what init's stdio is, for runtimes that keep no record of it.
func stdioLinks(pid int) []string {
	links := make([]string, 3)
	for fd := range links {
		if l, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, fd)); err == nil {
			links[fd] = l
		}
	}
	return links
}
