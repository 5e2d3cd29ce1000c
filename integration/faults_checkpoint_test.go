//go:build integration

package integration

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stasis-cr/stasis/integration/harness"
	"github.com/stasis-cr/stasis/integration/progs/box"
)

// visitDeaths bounds how often the engine is killed within a task of one
// container: each time a slot in the padding of its vdso is lost.
const visitDeaths = 4

// TestFaultCheckpoint fails and kills the engine at every step of a checkpoint.
// Running or paused, the container must go on as if nothing had happened.
func TestFaultCheckpoint(t *testing.T) {
	harness.NeedRoot(t)
	progs := buildFaults(t)
	e := box.Engine{Runtime: objectRuntime(t), Save: harness.Build(t).Stasis}
	passed := map[string]bool{}
	for _, v := range victims() {
		for _, state := range []string{"running", "paused"} {
			for _, mode := range []string{"error", "kill"} {
				t.Run(v.name+"/"+state+"/"+mode, func(t *testing.T) {
					faultCheckpoint(t, e, progs, v, state, mode, passed)
				})
			}
		}
	}
	if t.Failed() {
		return
	}
	for _, p := range checkpointPoints() {
		if !passed[p] {
			t.Errorf("no checkpoint came to point %q", p)
		}
	}
}

func buildFaults(t *testing.T) box.Programs {
	t.Helper()
	harness.NeedTools(t, "busybox", "python3")
	progs := buildObjects(t)
	var err error
	if progs.Shell, err = harness.Tool("busybox"); err != nil {
		t.Fatal(err)
	}
	return progs
}

func faultCheckpoint(t *testing.T, e box.Engine, progs box.Programs, v victim, state, mode string, passed map[string]bool) {
	t.Helper()
	points := checkpointPoints()
	for len(points) > 0 {
		r := newTrial(t, e, progs, v)
		r.start()
		was := r.baseline()
		deaths := 0
		for len(points) > 0 && deaths < visitDeaths && !t.Failed() {
			if mode == "kill" && strings.HasPrefix(points[0], "visit-") {
				deaths++
			}
			if r.strike(was, state, points[0], mode) {
				passed[points[0]] = true
			}
			if t.Failed() {
				t.Fatalf("after %s=%s of a %s container", points[0], mode, state)
			}
			points = points[1:]
		}
		r.must(r.save("", filepath.Join(t.TempDir(), "image"), "--leave-running"))
		r.as(was)
		if v.checks {
			if err := r.Go(r.ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// strike takes one checkpoint with a fault, and says whether it came to the
// point.
func (r *trial) strike(was box.Look, state, point, mode string) bool {
	r.Helper()
	if state == "paused" {
		r.pause()
	}
	spec := point + "=" + mode
	if r.v.nth > 0 {
		spec += "@" + strconv.Itoa(r.v.nth)
	}
	image := filepath.Join(r.TempDir(), "image")
	o := r.save(spec, image, "--leave-running")
	hit := o.killed || o.status != 0
	switch {
	case hit && mode == "error":
		r.oneLine(o, "fault injected at "+strconv.Quote(point))
		if left := exists(image); left != slices.Contains(complete(), point) {
			r.Errorf("the image directory is there: %v", left)
		}
	case hit && o.killed != (mode == "kill"):
		r.Fatalf("exit %d, killed %v: %s", o.status, o.killed, o.stderr)
	case hit && !slices.Contains(append(complete(), "dir-published"), point) && exists(filepath.Join(image, "state.img")):
		r.Error("there is half an image")
	}
	r.goesOn(was, state, o.killed)
	return hit
}

// complete are the points at which the image is whole.
func complete() []string { return []string{"committed", "ended"} }

// goesOn checks that the container is in the state in which it was. One that was
// paused may run if the engine was killed, if the runtime knows; then there is
// nothing to resume.
func (r *trial) goesOn(was box.Look, state string, killed bool) {
	r.Helper()
	is := r.status()
	if is != state && !(killed && is == "running") {
		r.Errorf("the container is %s, and was %s", is, state)
	}
	if is == "paused" {
		r.frozenAs(was)
		r.must(r.runtime("resume", r.ID))
	}
	r.as(was)
	r.progress()
}

// oneLine checks how a command failed.
func (r *trial) oneLine(o outcome, why string) {
	r.Helper()
	if o.killed || o.status != 1 {
		r.Errorf("exit %d, killed %v, want exit 1", o.status, o.killed)
	}
	if strings.Contains(o.stderr, "\n") || !strings.HasPrefix(o.stderr, "stasis: ") || !strings.Contains(o.stderr, why) {
		r.Errorf("stderr is not one line about %s: %q", why, o.stderr)
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// TestFaultEnd fails and kills the engine when the image is whole and the
// container is to end: the image must be good, and the container either go on
// or leave a record that the runtime can remove.
func TestFaultEnd(t *testing.T) {
	harness.NeedRoot(t)
	progs := buildFaults(t)
	e := box.Engine{Runtime: objectRuntime(t), Save: harness.Build(t).Stasis}
	for _, state := range []string{"running", "paused"} {
		for _, point := range endPoints() {
			for _, mode := range []string{"error", "kill"} {
				t.Run(state+"/"+point+"/"+mode, func(t *testing.T) {
					// It goes on after its image is made, so it must be one whose
					// files keep their names.
					v := victims()[1]
					v.nth = 0
					r := newTrial(t, e, progs, v)
					r.start()
					r.end(state, point, mode)
				})
			}
		}
	}
}

func (r *trial) end(state, point, mode string) {
	r.Helper()
	was := r.baseline()
	if state == "paused" {
		r.pause()
	}
	image := filepath.Join(r.TempDir(), "image")
	o := r.save(point+"="+mode, image)
	if mode == "error" {
		r.oneLine(o, "fault injected")
	} else if !o.killed {
		r.Fatalf("exit %d: %s", o.status, o.stderr)
	}
	if point == "committed" {
		r.goesOn(was, state, o.killed)
	}
	r.must(r.runtime("delete", "--force", r.ID))
	r.gone()
	r.must(r.load("", image))
	r.progress()
}
