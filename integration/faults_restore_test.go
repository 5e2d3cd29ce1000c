//go:build integration

package integration

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/fault"
	"github.com/stasis-cr/stasis/integration/harness"
	"github.com/stasis-cr/stasis/integration/progs/box"
)

// family has children, one of which shares its memory, a pipe between two of them,
// a thread, a zombie and files in a tmpfs.
const familyScript = `echo kept > /tmp/kept; while :; do sleep 100000; done & { sleep 100000 | sleep 100001; } & /bin/cprogs threads & ` + countAndFork

// load restores the container from an image in a bundle of its own.
func (r *trial) load(spec, image string) outcome {
	r.Helper()
	o := r.run(fault.Env+"="+spec, r.Engine.Save, "restore", "--detach", "--image-path", image,
		"--work-path", filepath.Join(r.dir, "work"), "--bundle", r.dir, "--pid-file", filepath.Join(r.dir, "pid"), r.ID)
	if o.status == 0 {
		text, err := os.ReadFile(filepath.Join(r.dir, "pid"))
		if err == nil {
			r.PID, err = strconv.Atoi(string(text))
		}
		if err != nil {
			r.Fatal(err)
		}
	}
	return o
}

// saved is a trial whose container was saved and has ended.
func saved(t *testing.T, e box.Engine, progs box.Programs) (r *trial, image string) {
	t.Helper()
	v := victim{name: "family", args: []string{"/bin/sh", "-c", familyScript}, counts: true}
	r = newTrial(t, e, progs, v)
	r.start()
	if err := r.AwaitReady(r.ctx); err != nil {
		t.Fatal(err)
	}
	image = filepath.Join(t.TempDir(), "image")
	r.must(r.save("", image))
	r.gone()
	if err := os.Remove(filepath.Join(r.dir, "pid")); err != nil {
		t.Fatal(err)
	}
	return r, image
}

// TestFaultRestore fails and kills the engine at every step of a restore.
// Nothing may be left of a restore that failed; what the engine that was killed
// could not remove must not be in the way of the next restore.
func TestFaultRestore(t *testing.T) {
	harness.NeedRoot(t)
	e := box.Engine{Runtime: objectRuntime(t), Save: harness.Build(t).Stasis}
	r, image := saved(t, e, buildFaults(t))
	for _, p := range restorePoints() {
		if !t.Run(p+"/error", func(t *testing.T) { r.in(t).loadError(p, image) }) {
			return
		}
		if !t.Run(p+"/kill", func(t *testing.T) { r.in(t).loadKill(p, image) }) {
			return
		}
	}
}

// in is the trial in a subtest.
func (r *trial) in(t *testing.T) *trial {
	s := *r
	s.T = t
	return &s
}

func (r *trial) loadError(point, image string) {
	r.Helper()
	r.oneLine(r.load(point+"=error", image), "fault injected at "+strconv.Quote(point))
	r.gone()
	if exists(filepath.Join(r.dir, "pid")) {
		r.Error("the pid file is left")
	}
}

// loadKill kills the engine, and restores again. At restoreReleasing the
// container is no longer marked as half-made, though it was not let go yet: only
// the runtime's delete removes it.
func (r *trial) loadKill(point, image string) {
	r.Helper()
	if o := r.load(point+"=kill", image); !o.killed {
		r.Fatalf("exit %d, not killed: %s", o.status, o.stderr)
	}
	defer r.reapInside()()
	if point != "created" { // there the runtime's own process waits
		r.poll("death of all processes", func() (bool, error) { return len(r.processes()) == 0, nil })
	}
	if point == "restore-releasing" {
		r.must(r.run("", r.Engine.Save, "delete", "--force", r.ID))
		r.gone()
	}
	r.must(r.load("", image))
	r.progress()
	r.must(r.run("", r.Engine.Save, "delete", "--force", r.ID))
	r.gone()
	if err := os.Remove(filepath.Join(r.dir, "pid")); err != nil {
		r.Error(err)
	}
}

// TestFaultRestoreDelete removes what a killed restore left with the runtime's
// own command.
func TestFaultRestoreDelete(t *testing.T) {
	harness.NeedRoot(t)
	e := box.Engine{Runtime: objectRuntime(t), Save: harness.Build(t).Stasis}
	r, image := saved(t, e, buildFaults(t))
	for _, p := range []string{"created", "launched", "restore-fill", "restore-leave"} {
		r.load(p+"=kill", image)
		stop := r.reapInside()
		r.must(r.run("", r.Engine.Save, "delete", "--force", r.ID))
		stop()
		r.gone()
	}
}

// reapInside waits, until the function that it returns is called, for children of
// ours that are in a pid namespace of their own: the init of the container and
// the engine's helper. Their parent was the engine that was killed, so they are
// ours now, and the runtime waits until they are gone.
func (r *trial) reapInside() (stop func()) {
	r.Helper()
	ctx, cancel := context.WithCancel(r.ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = box.Poll(ctx, func() (bool, error) { // it ends with ctx
			for _, pid := range children() {
				status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
				if err == nil && inside.Match(status) {
					_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil) // it may not have ended yet
				}
			}
			return false, nil
		})
	}()
	return func() {
		cancel()
		<-ended
	}
}

// inside matches the status of a task with a number in a second pid namespace.
var inside = regexp.MustCompile(`(?m)^NSpid:\t\d+\t\d+`)

// children lists the children of all our threads.
func children() (pids []int) {
	tasks, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		return nil
	}
	for _, path := range tasks {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // the thread has ended
		}
		for _, f := range strings.Fields(string(text)) {
			if pid, err := strconv.Atoi(f); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// TestFaultRestoreOther checks that a restore does not remove a container that
// is not its own half-made one, whatever a killed restore of that name left.
func TestFaultRestoreOther(t *testing.T) {
	harness.NeedRoot(t)
	e := box.Engine{Runtime: objectRuntime(t), Save: harness.Build(t).Stasis}
	r, image := saved(t, e, buildFaults(t))
	r.load("launched=kill", image)
	r.must(r.runtime("delete", "--force", r.ID))
	r.must(r.runtime("create", "--bundle", r.dir, r.ID))
	for range 2 {
		r.oneLine(r.load("", image), "exists")
		if is := r.status(); is != "created" {
			t.Fatalf("the other container is %s, and was created", is)
		}
	}
}

// gone checks that nothing is left of the container, but for a moment.
func (r *trial) gone() {
	r.Helper()
	var left []string
	ctx := r.ctx
	err := harness.Poll(ctx, 5e9, "end of everything", func() (bool, error) {
		r.reap()
		left = slices.Concat(r.processes(), r.cgroups(), r.mounts(), r.records())
		return len(left) == 0, nil
	})
	if err != nil {
		r.Errorf("%v: %s", err, strings.Join(left, "\n"))
	}
}

// processes lists those that have the container in their cgroup or arguments.
// Zombies are in no cgroup.
func (r *trial) processes() (left []string) {
	r.Helper()
	r.reap()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		r.Fatal(err)
	}
	for _, d := range dirs {
		group, _ := os.ReadFile(filepath.Join(d, "cgroup")) //nolint:errcheck // it has ended
		args, _ := os.ReadFile(filepath.Join(d, "cmdline")) //nolint:errcheck // likewise
		if bytes.Contains(group, []byte(r.ID)) || bytes.Contains(args, []byte(r.ID)) {
			left = append(left, fmt.Sprintf("process %s %q", d, args))
		}
	}
	return left
}

func (r *trial) cgroups() (left []string) {
	r.Helper()
	err := filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Name() == r.ID {
			left = append(left, "cgroup "+path)
		}
		return nil // others come and go
	})
	if err != nil {
		r.Fatal(err)
	}
	return left
}

func (r *trial) mounts() (left []string) {
	r.Helper()
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		r.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, r.dir) {
			left = append(left, "mount "+line)
		}
	}
	return left
}

// records lists what the runtime and the engine note of a container.
func (r *trial) records() (left []string) {
	r.Helper()
	if dir := filepath.Join(r.dir, "state", r.ID); exists(dir) {
		left = append(left, dir)
	}
	if r.status() != "none" {
		left = append(left, "status "+r.status())
	}
	return left
}
