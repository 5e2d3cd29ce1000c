//go:build integration

// Package integration holds the tests that need the real neighbours: a kernel,
// an OCI runtime, containerd. Run it as root with -tags integration; with
// STASIS_CGROUP=v2 the whole of it runs on the unified cgroup hierarchy.
package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stasis-cr/stasis/integration/harness"
)

const (
	busyboxRef = "test.stasis.dev/busybox:1"

	// soon bounds what an idle machine does in well under a second.
	soon = 20 * time.Second
)

// counter writes the next number to /count for ever. The file is opened anew
// each time, so nothing but the shell's own variable carries the number.
const counter = `i=0; while :; do i=$((i+1)); echo $i >> /count; usleep 20000; done`

// runtimes are the ways to make containerd use the shim.
var runtimes = []struct {
	name   string
	asRunc bool
	arg    func(harness.Bins) string
}{
	{"name", false, func(harness.Bins) string { return harness.RuntimeName }},
	{"path", false, func(b harness.Bins) string { return b.Shim }},
	{"runc", true, func(harness.Bins) string { return harness.RuncName }},
}

// world is a containerd with a busybox image in it.
type world struct {
	*harness.Containerd
	t    *testing.T
	dir  string // for the test's files
	bins harness.Bins
}

// newWorld starts a containerd that goes with the test.
func newWorld(t *testing.T, cfg harness.Config) *world {
	t.Helper()
	harness.NeedRoot(t)
	harness.NeedTools(t, "containerd", "ctr", "runc", "busybox")
	cfg.Bins = harness.Build(t)
	dir, err := os.MkdirTemp("", "stasis-t-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	cfg.Dir = filepath.Join(dir, filepath.Base(dir)[7:])
	if err := os.Mkdir(cfg.Dir, 0o711); err != nil {
		t.Fatal(err)
	}
	cfg.Name = "stasis-" + filepath.Base(cfg.Dir)
	c, err := harness.StartContainerd(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{Containerd: c, t: t, dir: dir, bins: cfg.Bins}
	t.Cleanup(w.end)
	w.importBusybox()
	return w
}

func (w *world) end() {
	if w.t.Failed() {
		w.t.Logf("containerd's log:\n%s", readLog(w.LogFile))
	}
	if err := w.Stop(context.Background()); err != nil {
		w.t.Error("stop:", err)
	}
}

// readLog returns a log without what containerd says at every start.
func readLog(name string) string {
	b, err := os.ReadFile(name)
	if err != nil {
		return err.Error()
	}
	var keep []string
	for line := range strings.Lines(string(b)) {
		if !strings.Contains(line, " plugin\"") {
			keep = append(keep, line)
		}
	}
	return strings.Join(keep[max(0, len(keep)-40):], "")
}

func (w *world) importBusybox() {
	w.t.Helper()
	files, err := harness.Busybox(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	im := harness.Image{
		Ref:   busyboxRef,
		Files: append(files, harness.Base()...),
		Cmd:   []string{"/bin/sh", "-c", counter},
		Env:   []string{"PATH=/bin"},
	}
	if err := w.Import(w.t.Context(), im); err != nil {
		w.t.Fatal(err)
	}
}

// ctr runs ctr, which must succeed.
func (w *world) ctr(args ...string) string {
	w.t.Helper()
	out, err := w.Ctr(w.t.Context(), args...)
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

// run starts a container of the busybox image; args begin with its name.
func (w *world) run(runtime string, flags []string, args ...string) {
	w.t.Helper()
	line := append([]string{"run", "-d", "--null-io", "--runtime", runtime}, harness.RunArgs()...)
	line = append(append(line, flags...), busyboxRef)
	w.ctr(append(line, args...)...)
}

// exec runs a command in a container that prints something.
func (w *world) exec(id string, args ...string) string {
	w.t.Helper()
	out, err := w.Ask(w.t.Context(), id, args...)
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

func (w *world) poll(what string, f func() (bool, error)) {
	w.t.Helper()
	if err := harness.Poll(w.t.Context(), soon, what, f); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) waitStatus(id, want string) {
	w.t.Helper()
	w.poll(id+" "+want, func() (bool, error) {
		got, err := w.Status(w.t.Context(), id)
		if err == nil && got != want {
			err = fmt.Errorf("status is %q", got)
		}
		return err == nil, err
	})
}

// count returns the last number in /count, after checking that none is missing
// and none is there twice: then the shell has gone on from exactly where it was.
func (w *world) count(id string) int {
	w.t.Helper()
	n := 0
	for s := range strings.FieldsSeq(w.exec(id, "cat", "/count")) {
		n++
		if s != strconv.Itoa(n) {
			w.t.Fatalf("/count of %s: line %d is %q", id, n, s)
		}
	}
	return n
}

// waitCount waits until the count is past n, and returns it.
func (w *world) waitCount(id string, n int) int {
	w.t.Helper()
	got := 0
	w.poll(fmt.Sprintf("count of %s past %d", id, n), func() (bool, error) {
		got = w.count(id)
		return got > n, nil
	})
	return got
}

// remove kills a container and deletes it.
func (w *world) remove(id string) {
	w.t.Helper()
	if err := w.Remove(w.t.Context(), id); err != nil {
		w.t.Fatal(err)
	}
}

// behaves checks everything that a running counter must be able to do, and
// leaves it running.
func (w *world) behaves(id string) {
	w.t.Helper()
	n := w.waitCount(id, w.count(id))
	if got := w.exec(id, "cat", "/proc/1/comm"); got != "sh\n" {
		w.t.Errorf("comm of pid 1 is %q", got)
	}
	w.metrics(id)
	if ps := w.ctr("tasks", "ps", id); len(strings.Split(strings.TrimSpace(ps), "\n")) < 2 {
		w.t.Errorf("ctr tasks ps: %q", ps)
	}
	w.ctr("tasks", "pause", id)
	w.waitStatus(id, "PAUSED")
	w.ctr("tasks", "resume", id)
	w.waitStatus(id, "RUNNING")
	w.waitCount(id, n)
}

func (w *world) metrics(id string) {
	w.t.Helper()
	if m := w.ctr("tasks", "metrics", id); !strings.Contains(m, id) {
		w.t.Errorf("ctr tasks metrics: %q", m)
	}
}

// endsBy kills a container with a signal and checks the exit status.
func (w *world) endsBy(id, signal string, status int) {
	w.t.Helper()
	w.ctr("tasks", "kill", "--signal", signal, id)
	w.waitStatus(id, "STOPPED")
	_, diag, err := w.CtrOutput(w.t.Context(), "tasks", "delete", id)
	if err != nil {
		w.t.Fatal(err)
	}
	if want := fmt.Sprintf("non-zero exit code %d", status); !strings.Contains(diag, want) {
		w.t.Errorf("ctr tasks delete %s: %q, want %s", id, diag, want)
	}
	w.ctr("containers", "delete", id)
}

// TestCtrRun runs containers that are never checkpointed: the shim must be no
// worse at that than containerd's own.
func TestCtrRun(t *testing.T) {
	for _, r := range runtimes {
		t.Run(r.name, func(t *testing.T) {
			w := newWorld(t, harness.Config{AsRunc: r.asRunc})
			w.run(r.arg(w.bins), nil, "c1")
			w.behaves("c1")
			w.endsBy("c1", "KILL", 137)
			w.exitStatus(r.arg(w.bins))
		})
	}
}

// exitStatus runs a container in the foreground that ends by itself.
func (w *world) exitStatus(runtime string) {
	w.t.Helper()
	line := append([]string{"run", "--rm", "--runtime", runtime}, harness.RunArgs()...)
	out, err := w.Ctr(w.t.Context(), append(line, busyboxRef, "c2", "/bin/sh", "-c", "echo hello; exit 3")...)
	if err == nil || !strings.Contains(err.Error(), "exit status 3") || out != "hello\n" {
		w.t.Errorf("ctr run: %q, %v; want hello and exit status 3", out, err)
	}
}
