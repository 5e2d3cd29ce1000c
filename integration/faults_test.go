//go:build integration

package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/fault"
	"github.com/stasis-cr/stasis/integration/harness"
	"github.com/stasis-cr/stasis/integration/progs/box"
)

// checkpointPoints are the steps of a checkpoint that leaves the container
// running, in their order; endPoints, those of one that ends it.
func checkpointPoints() []string {
	return []string{
		"surveyed", "dir-create", "visit-lent", "precopy-lent", "precopy-followed", "precopy-round", "precopied", "seized", "thawed", "stopped",
		"visit-written", "visit-entered", "visit-masked", "visit-running", "visit-mapped",
		"visit-batch-written", "visit-batch-done",
		"visit-closing", "visit-unmapped", "visit-unmasked", "visit-left", "visit-erased",
		"captured-process", "captured-files", "captured-namespaces", "captured", "released", "stored",
		"dir-state", "dir-renamed", "dir-publish", "dir-published", "committed",
	}
}

func endPoints() []string { return []string{"committed", "ended"} }

// restorePoints are the steps of a restore in their order.
func restorePoints() []string {
	return []string{
		"checked", "created", "seized-init", "launched", "restore-namespaces", "restore-forked", "restore-inherited", "restore-grow",
		"restore-map", "restore-filling", "restore-fill", "restore-watch", "prepared-objects", "restore-files", "restore-threads", "restore-state",
		"restore-zombies", "restore-finish", "restore-leave", "restore-releasing",
	}
}

// lazyPoints are the steps of the server that fills memory later.
func lazyPoints() []string {
	return []string{"lazy-fault", "lazy-copied", "lazy-event", "lazy-forked", "lazy-kept"}
}

// TestFaultPoints compares the lists of points with the source.
func TestFaultPoints(t *testing.T) {
	named := slices.Concat(checkpointPoints(), endPoints(), chainPoints(), restorePoints(), lazyPoints(), pagePoints(),
		migratePoints(), sessionPoints(), guardPoints(), gatePoints())
	found := sourcePoints(t)
	for _, p := range found {
		if !slices.Contains(named, p) {
			t.Errorf("point %q has no test", p)
		}
	}
	for _, p := range named {
		if !slices.Contains(found, p) {
			t.Errorf("point %q is tested but not in the source", p)
		}
	}
}

// sourcePoints finds the calls of fault.Point. Those of the phases of a restore
// are made in one place, from a table.
func sourcePoints(t *testing.T) []string {
	t.Helper()
	call := regexp.MustCompile(`fault\.Point\((.*?)\)(?:[\s;,)]|$)`)
	phase := regexp.MustCompile(`(?m)^\t\t\{"([a-z]+)", (?:func\(|r\.)`)
	var points []string
	look := func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, m := range call.FindAllSubmatch(text, -1) {
			arg := string(m[1])
			if name, err := strconv.Unquote(arg); err == nil {
				points = append(points, name)
				continue
			}
			if arg != `"restore-" + phase.name` {
				t.Errorf("%s: fault.Point(%s) has no name to be found by", path, arg)
			}
			for _, p := range phase.FindAllSubmatch(text, -1) {
				points = append(points, "restore-"+string(p[1]))
			}
		}
		return err
	}
	for _, dir := range []string{"cr", "shim"} {
		if err := filepath.WalkDir(filepath.Join("..", dir), look); err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(points)
	return slices.Compact(points)
}

// victim is a container that runs while things go wrong.
type victim struct {
	name   string
	args   []string
	python bool
	counts bool // writes growing numbers to /ctl/n
	init   bool // only its init can be compared: it bears and reaps
	checks bool // checks itself in the end
	still  bool // keeps its memory and threads as they are
	nth    int  // the passing of a point at which the fault strikes
}

const countAndFork = `i=0; while :; do i=$((i+1)); echo $i > /ctl/new; busybox mv /ctl/new /ctl/n; sleep 0.005; done`

// sleepersAndCount has threads in every kind of sleep, none of which may end,
// and two that run.
const sleepersAndCount = `
import os, select, threading, time
def never(what):
    open("/ctl/n", "w").write(what + " ended")
    os._exit(1)
def sleeper(what, f):
    def run():
        f()
        never(what)
    threading.Thread(target=run, daemon=True).start()
r, w = os.pipe()
ep = select.epoll(); ep.register(r, select.EPOLLIN)
po = select.poll(); po.register(r, select.POLLIN)
sleeper("sleep", lambda: time.sleep(3600))
sleeper("epoll", lambda: ep.poll(3600))
sleeper("poll", lambda: po.poll(3600000))
sleeper("select", lambda: select.select([r], [], [], 3600))
sleeper("read", lambda: os.read(r, 1))
sleeper("futex", lambda: threading.Event().wait(3600))
sleeper("lock", lambda: threading.Event().wait())
n = [0, 0]
def count():
    while True:
        n[1] += 1
        time.sleep(0.001)
threading.Thread(target=count, daemon=True).start()
fd = os.open("/ctl/n", os.O_RDWR | os.O_CREAT, 0o644)
while True:
    was = n[1]
    while n[1] == was:
        time.sleep(0.002)
    n[0] += 1
    os.pwrite(fd, b"%d\n" % n[0], 0)
`

// writeAndCount writes to memory that is large enough to be followed.
const writeAndCount = `
import os, time
memory = bytearray(os.urandom(40 << 20))
fd = os.open("/ctl/n", os.O_RDWR | os.O_CREAT, 0o644)
n = 0
while True:
    n += 1
    memory[n * 4099 % len(memory)] ^= 1
    if n % 64 == 0:
        os.pwrite(fd, b"%d\n" % n, 0)
        time.sleep(0.001)
`

func victims() []victim {
	return []victim{
		{name: "shell", args: []string{"/bin/sh", "-c", countAndFork}, counts: true, init: true, still: true},
		{
			name: "python", args: []string{"/usr/bin/python3", "-c", sleepersAndCount},
			python: true, counts: true, still: true, nth: 3,
		},
		{name: "large", args: []string{"/usr/bin/python3", "-c", writeAndCount}, python: true, counts: true, still: true},
		// Init is visited first: a task that job control has stopped, and the engine
		// dies in, is put right when it is continued, not at once (ADR 2).
		{name: "stopped", args: []string{"/bin/cprogs", "stopped"}, checks: true, still: true},
		{name: "restart", args: []string{"/bin/cprogs", "restart"}, checks: true},
	}
}

// trial is a container with a state directory and an engine of its own.
type trial struct {
	*testing.T
	*box.Box
	ctx context.Context //nolint:containedctx // of one test, as testing.T has it
	v   victim
	dir string // of the bundle
}

func newTrial(t *testing.T, e box.Engine, progs box.Programs, v victim) *trial {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	id := fmt.Sprintf("faults-%d-%s-%d", os.Getpid(), v.name, time.Now().UnixNano())
	b, err := box.New(ctx, dir, id, e, progs, box.Config{Args: v.args, Caps: box.DefaultCaps()})
	if err != nil {
		t.Fatal(err)
	}
	r := &trial{T: t, Box: b, ctx: ctx, v: v, dir: dir}
	if v.python {
		r.addPython()
	}
	t.Cleanup(func() {
		if err := b.Remove(context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
		r.reap()
		r.forget()
	})
	return r
}

// forget removes the mark of a restore that was killed, which only a restore under
// the same name would: no other has this one.
func (r *trial) forget() {
	r.Helper()
	left, err := filepath.Glob("/run/stasis/restore-" + r.ID + "-*")
	for _, dir := range left {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	if err != nil {
		r.Error(err)
	}
}

func (r *trial) start() {
	r.Helper()
	if err := r.Box.Run(r.ctx); err != nil {
		r.Fatal(err)
	}
	if r.v.checks {
		if err := r.AwaitReady(r.ctx); err != nil {
			r.Fatal(err)
		}
	} else {
		r.progress()
	}
}

// addPython links the host's Python into the root file system: the folders are
// on one file system as a rule, and copied where they are not.
func (r *trial) addPython() {
	r.Helper()
	files, err := harness.Python(r.ctx)
	if err != nil {
		r.Fatal(err)
	}
	for _, f := range files {
		to := r.Path(f.Path)
		body, err := os.ReadFile(f.Source)
		if err == nil {
			err = os.MkdirAll(filepath.Dir(to), 0o755)
		}
		if err == nil {
			err = os.WriteFile(to, body, f.Mode)
		}
		if err != nil {
			r.Fatal(err)
		}
	}
}

// outcome is how a command ended.
type outcome struct {
	killed bool
	status int
	stderr string
}

// run runs a program with the container's state directory. Nothing of it is a
// pipe, which a container that it leaves could keep open.
func (r *trial) run(env, program string, args ...string) outcome {
	r.Helper()
	said, err := os.OpenFile(filepath.Join(r.TempDir(), "stderr"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		r.Fatal(err)
	}
	defer said.Close()
	cmd := exec.CommandContext(r.ctx, program, append([]string{"--root", filepath.Join(r.dir, "state")}, args...)...)
	cmd.Stderr = said
	cmd.Env = append(os.Environ(), env)
	err = cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		r.Fatal(err)
	}
	text, err := os.ReadFile(said.Name())
	if err != nil {
		r.Fatal(err)
	}
	ws, ok := cmd.ProcessState.Sys().(interface{ Signaled() bool })
	return outcome{ok && ws.Signaled(), cmd.ProcessState.ExitCode(), strings.TrimSpace(string(text))}
}

func (r *trial) runtime(args ...string) outcome {
	r.Helper()
	return r.run("", r.Engine.Runtime, args...)
}

// pause pauses the container. The freezer of cgroup v1 gives up where tasks are
// born and end all the time, and runc with it.
func (r *trial) pause() {
	r.Helper()
	var o outcome
	r.poll("pause", func() (bool, error) {
		o = r.runtime("pause", r.ID)
		if strings.Contains(o.stderr, "unable to freeze") {
			return false, nil
		}
		r.must(o)
		return true, nil
	})
}

func (r *trial) must(o outcome) {
	r.Helper()
	if o.killed || o.status != 0 {
		r.Fatalf("exit %d, killed %v: %s", o.status, o.killed, o.stderr)
	}
}

func (r *trial) save(point, image string, flags ...string) outcome {
	r.Helper()
	args := append([]string{"checkpoint", "--image-path", image, "--work-path", filepath.Join(r.dir, "work")}, flags...)
	return r.run(fault.Env+"="+point, r.Engine.Save, append(args, r.ID)...)
}

// number is what the container has counted to.
func (r *trial) number() (int, error) {
	text, err := os.ReadFile(r.Path("ctl", "n"))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(string(bytes.TrimSpace(text)))
}

// progress waits until the container has counted on.
func (r *trial) progress() {
	r.Helper()
	if !r.v.counts {
		return
	}
	was := -1
	r.poll("count", func() (bool, error) {
		n, err := r.number()
		if err != nil {
			return false, nil //nolint:nilerr // between two writes
		}
		if was < 0 {
			was = n
		}
		return n > was+1, nil
	})
}

func (r *trial) poll(what string, ask func() (bool, error)) {
	r.Helper()
	ctx, cancel := context.WithTimeout(r.ctx, 15*time.Second)
	defer cancel()
	if err := box.Poll(ctx, ask); err != nil {
		r.Fatalf("%s: %v", what, err)
	}
}

// look is what must not change. The state of the freezer is asked of the runtime.
func (r *trial) look() box.Look {
	r.Helper()
	l, err := r.Look(box.What{Signals: r.v.still && !r.v.init, Memory: r.v.still})
	if err != nil {
		r.Fatal(err)
	}
	mine := fmt.Sprintf("/proc/%d/", r.PID)
	return slices.DeleteFunc(l, func(s string) bool {
		return r.v.init && !strings.HasPrefix(s, mine) || strings.HasPrefix(s, "/sys/fs/cgroup")
	})
}

// baseline is a look that the next one agrees with.
func (r *trial) baseline() (l box.Look) {
	r.Helper()
	r.poll("two looks alike", func() (bool, error) {
		was := l
		l = r.look()
		return was != nil && box.Differ(was, l) == nil, nil
	})
	return l
}

func (r *trial) as(was box.Look) {
	r.Helper()
	r.alike(was, func(string) bool { return false })
}

// frozenAs is as for a frozen container: there not every freezer tells a task
// that job control stopped from any other, and a shell may have been caught
// between two steps of its own, with a file open or signals blocked.
func (r *trial) frozenAs(was box.Look) {
	r.Helper()
	fleeting := []string{"State:\tT"}
	if r.v.init {
		fleeting = append(fleeting, "/fd ", "/fdinfo/", "SigBlk", "SigCgt")
	}
	r.alike(was, func(line string) bool {
		return slices.ContainsFunc(fleeting, func(s string) bool { return strings.Contains(line, s) })
	})
}

// alike compares all lines of two looks but those to be passed over.
func (r *trial) alike(was box.Look, pass func(line string) bool) {
	r.Helper()
	var diff []string
	ctx, cancel := context.WithTimeout(r.ctx, 3*time.Second)
	defer cancel()
	was = slices.DeleteFunc(slices.Clone(was), pass)
	err := box.Poll(ctx, func() (bool, error) { // it may be between two steps of its own
		diff = box.Differ(was, slices.DeleteFunc(r.look(), pass))
		return len(diff) == 0, nil
	})
	if err != nil {
		r.Errorf("not as before:\n%s", strings.Join(diff, "\n"))
	}
}

func (r *trial) status() string {
	r.Helper()
	out, err := exec.CommandContext(r.ctx, r.Engine.Runtime, "--root", filepath.Join(r.dir, "state"), "state", r.ID).Output()
	m := regexp.MustCompile(`"status": "([a-z]+)"`).FindSubmatch(out)
	if err != nil || m == nil {
		return "none"
	}
	return string(m[1])
}

// reap waits for the orphans that came to us, so that they are gone from /proc.
// Nothing that another part of the test waits for runs now.
func (r *trial) reap() {
	r.Helper()
	for _, pid := range children() {
		_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil) //nolint:errcheck // it may run on
	}
}
