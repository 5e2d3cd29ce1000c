//go:build integration

package integration

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stasis-cr/stasis/integration/harness"
	"github.com/stasis-cr/stasis/integration/progs/box"
)

// rounds is how often in a row each program is checkpointed and restored.
const rounds = 5

// survivor is a real program that must lose nothing.
type survivor struct {
	name  string
	args  []string
	files func(context.Context) ([]harness.File, error)
	tools []string
	// begin, if not nil, prepares it once it runs.
	begin func(*life)
	// look says what must be the same for ever; nil: that it prints one number
	// after the other is all.
	look func(*life) string
}

// pipelineScript has background jobs and a pipeline whose end prints what its
// beginning counts.
const pipelineScript = `sleep 100000 & sleep 100001 & (while :; do sleep 0.05; done) &
n=0; while :; do n=$((n+1)); echo $n; busybox usleep 5000; done | while read x; do echo $x; done`

// treeProgram bears a hundred processes: sleepers in sessions and groups of
// their own, grandchildren, zombies, orphans.
const treeProgram = `
import os, time
def sleeper():
    while True: time.sleep(1000)
def child(f):
    if os.fork() == 0:
        f()
        os._exit(3)
def leader():
    os.setsid()
    child(sleeper)
    sleeper()
def group():
    os.setpgid(0, 0)
    child(sleeper)
    sleeper()
def orphaner():
    child(sleeper)
def daemon():
    os.setsid()
    child(sleeper)
for i in range(40): child(sleeper)
for i in range(10): child(leader)
for i in range(10): child(group)
for i in range(8): child(lambda: None)  # zombies
for i in range(6): child(orphaner)      # an orphan and a zombie each
for i in range(4): child(daemon)        # an orphan of a dead session's leader each
n = 0
while True:
    n += 1
    print(n, flush=True)
    time.sleep(0.005)
`

// threadsProgram passes numbers through eight threads and prints those that all
// have seen.
const threadsProgram = `
import queue, threading, time
first = q = queue.Queue()
def stage(a, b):
    while True: b.put(a.get() + 1)
for i in range(8):
    nxt = queue.Queue()
    threading.Thread(target=stage, args=(q, nxt), daemon=True).start()
    q = nxt
n = 0
while True:
    first.put(n)
    m = q.get()
    assert m == n + 8
    n += 1
    print(n, flush=True)
    time.sleep(0.005)
`

func survivors() []survivor {
	return []survivor{
		{name: "shell", args: []string{"/bin/sh", "-c", pipelineScript}},
		{name: "tree", args: []string{"/usr/bin/python3", "-c", treeProgram}, files: harness.Python, look: (*life).family},
		{name: "python", args: []string{"/usr/bin/python3", "-c", threadsProgram}, files: harness.Python},
		{name: "go", args: []string{"/bin/progs", "survive"}},
		{
			name: "redis", tools: []string{"redis-server"}, files: hostPrograms("redis-server"),
			args: []string{"/usr/bin/redis-server", "--port", "0", "--save", "", "--appendonly", "no",
				"--unixsocket", "/ctl/s", "--unixsocketperm", "777", "--dir", "/tmp"},
			begin: (*life).fillRedis, look: (*life).redis,
		},
	}
}

// TestSurvive takes real programs through a checkpoint that leaves them running
// and through rounds of checkpoint and restore in a row: as root with the default
// capabilities, and as a user with none, no_new_privs and the default seccomp
// profile.
func TestSurvive(t *testing.T) {
	harness.NeedRoot(t)
	harness.NeedTools(t, "busybox", "python3")
	progs := buildObjects(t)
	var err error
	if progs.Shell, err = harness.Tool("busybox"); err != nil {
		t.Fatal(err)
	}
	e := box.Engine{Runtime: objectRuntime(t), Save: harness.Build(t).Stasis}
	for _, s := range survivors() {
		t.Run(s.name, func(t *testing.T) {
			harness.NeedTools(t, s.tools...)
			t.Run("root", func(t *testing.T) { surviveAs(t, e, progs, s, 0) })
			t.Run("user", func(t *testing.T) { surviveAs(t, e, progs, s, 1000) })
		})
	}
}

// life is one program on its way.
type life struct {
	*testing.T
	*box.Box
	ctx  context.Context //nolint:containedctx // of one test, as testing.T has it
	s    survivor
	last int // number that it had printed when it was looked at last
}

func surviveAs(t *testing.T, e box.Engine, progs box.Programs, s survivor, uid uint32) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	c := box.Config{Args: s.args, UID: uid}
	if uid == 0 {
		c.Caps = box.DefaultCaps()
	}
	b, err := box.New(ctx, t.TempDir(), fmt.Sprintf("survive-%d-%s-%d", os.Getpid(), s.name, uid), e, progs, c)
	if err != nil {
		t.Fatal(err)
	}
	l := &life{T: t, Box: b, ctx: ctx, s: s}
	l.install()
	t.Cleanup(func() {
		if err := b.Remove(context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
	})
	l.must(b.Run(ctx))
	if s.begin != nil {
		s.begin(l)
	}
	l.goesOn()
	was := l.looks()
	image := filepath.Join(t.TempDir(), "left")
	l.must(b.Checkpoint(ctx, image, "--leave-running"))
	l.unchanged("left running", was)
	for round := range rounds {
		image := filepath.Join(t.TempDir(), strconv.Itoa(round))
		l.must(b.Checkpoint(ctx, image))
		_, err := b.Wait(ctx)
		l.must(err)
		if err := b.Restore(ctx, image); err != nil {
			t.Fatalf("round %d: %v\n%s", round, err, logErrors(image, "restore.log"))
		}
		l.unchanged(fmt.Sprintf("round %d", round), was)
	}
}

func (l *life) must(err error) {
	l.Helper()
	if err != nil {
		l.Fatal(err)
	}
}

// install puts the program's files into the root file system.
func (l *life) install() {
	l.Helper()
	if l.s.files == nil {
		return
	}
	files, err := l.s.files(l.ctx)
	l.must(err)
	for _, f := range files {
		to := l.Path(f.Path)
		body, err := os.ReadFile(f.Source)
		l.must(err)
		l.must(os.MkdirAll(filepath.Dir(to), 0o755))
		l.must(os.WriteFile(to, body, f.Mode))
	}
}

func (l *life) unchanged(when, was string) {
	l.Helper()
	l.goesOn()
	if is := l.looks(); is != was {
		l.Fatalf("%s: it is\n%s\nand was\n%s", when, is, was)
	}
}

func (l *life) looks() string {
	if l.s.look == nil {
		return ""
	}
	return l.s.look(l)
}

// goesOn waits until the program has printed some more numbers, and checks that
// all numbers so far follow each other: nothing was lost, nothing came twice.
func (l *life) goesOn() {
	l.Helper()
	if l.s.begin != nil { // it prints no numbers: look asks it
		return
	}
	want := l.last + 20
	err := box.Poll(l.ctx, func() (bool, error) {
		n := 0
		lines := strings.Split(l.Output(), "\n")
		for _, line := range lines[:len(lines)-1] {
			n++
			if line != strconv.Itoa(n) {
				return false, fmt.Errorf("it printed %q after %d", line, n-1)
			}
		}
		l.last = n
		return n >= want, nil
	})
	if err != nil {
		l.Fatalf("after %d: %v", l.last, err)
	}
}

// family describes the processes of the container: whose children they are, by
// their numbers in the container, and whether they are zombies. The order among
// siblings is not part of it: a restore may bear an orphan before its elders.
func (l *life) family() string {
	l.Helper()
	var all []string
	var visit func(pid, parent int)
	visit = func(pid, parent int) {
		var out strings.Builder
		self := 0
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			l.Fatal(err)
		}
		for line := range strings.Lines(string(status)) {
			name, value, _ := strings.Cut(line, ":")
			fields := strings.Fields(value)
			switch name {
			case "NSpid", "NSpgid", "NSsid":
				if name == "NSpid" {
					self, err = strconv.Atoi(fields[len(fields)-1])
					l.must(err)
				}
				fmt.Fprintf(&out, "%s %s ", name, fields[len(fields)-1])
			case "State":
				fmt.Fprintf(&out, "%v ", fields[0] == "Z")
			}
		}
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
		if err != nil {
			l.Fatal(err)
		}
		all = append(all, fmt.Sprintf("%schild of %d", out.String(), parent))
		for _, c := range strings.Fields(string(children)) {
			n, err := strconv.Atoi(c)
			l.must(err)
			visit(n, self)
		}
	}
	visit(l.PID, 0)
	slices.Sort(all)
	return strings.Join(all, "\n")
}

// keys is how many keys the redis holds.
const keys = 100000

func (l *life) fillRedis() {
	l.Helper()
	l.ask("EVAL", fmt.Sprintf("for i=1,%d do redis.call('set','key:'..i,redis.sha1hex(i)) end return 1", keys), "0")
}

// redis asks for the number of keys and a digest of all of them.
func (l *life) redis() string {
	l.Helper()
	return l.ask("DBSIZE") + l.ask("EVAL", fmt.Sprintf(
		"local d='' for i=1,%d do d=redis.sha1hex(d..redis.call('get','key:'..i)) end return d", keys), "0")
}

// ask speaks to redis over its socket, from outside: a connection of its own for
// each question, for an open one would stand in the way of a checkpoint.
func (l *life) ask(words ...string) (answer string) {
	l.Helper()
	var q strings.Builder
	fmt.Fprintf(&q, "*%d\r\n", len(words))
	for _, w := range words {
		fmt.Fprintf(&q, "$%d\r\n%s\r\n", len(w), w)
	}
	err := box.Poll(l.ctx, func() (bool, error) {
		// A socket's name has room for 107 bytes, and a test's directory is long.
		dir, err := os.Open(l.Path("ctl"))
		if err != nil {
			return false, err
		}
		defer dir.Close()
		var d net.Dialer
		c, err := d.DialContext(l.ctx, "unix", fmt.Sprintf("/proc/self/fd/%d/s", dir.Fd()))
		if err != nil {
			return false, nil //nolint:nilerr // not yet
		}
		defer c.Close()
		if _, err := c.Write([]byte(q.String())); err != nil {
			return false, err
		}
		r := bufio.NewReader(c)
		if answer, err = r.ReadString('\n'); err == nil && strings.HasPrefix(answer, "$") {
			answer, err = r.ReadString('\n')
		}
		return true, err
	})
	if err != nil || strings.HasPrefix(answer, "-") {
		l.Fatalf("%s: %q, %v", words[0], answer, err)
	}
	return answer
}
