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

// survivor is a real program that must lose nothing. It prints lines of a name
// and a number, or of a number alone, and counts each name from one.
type survivor struct {
	name   string
	args   []string
	counts []string // the names that it counts; nil: the one without a name
	more   int      // numbers of each name that show that it goes on
	files  func(context.Context) ([]harness.File, error)
	tools  []string
	// begin, if not nil, prepares it once it runs.
	begin func(*life)
	// look, if not nil, says what must be the same for ever.
	look func(*life) string
}

// pipelineScript has background jobs, of which one sleeps for ever, and a
// pipeline whose end prints what its beginning counts.
const pipelineScript = `
count() { n=0; while :; do n=$((n+1)); echo $1 $n; busybox usleep 5000; done; }
sleep 100000 &
count a &
count b &
count pipe | busybox cat | while read -r name n; do echo $name $n; done
`

// treeProgram is a hundred processes: children in its own and in other sessions
// and groups, grandchildren, orphans, zombies. Each that lives counts in its own
// memory and in memory that all share, and looks whether the two agree; the
// first prints how far all have come. It lets nobody go without having seen its
// end, and reaps nobody.
const treeProgram = `
import mmap, os, signal, time
slots = 0
shared = memoryview(mmap.mmap(-1, 4096)).cast("Q")
def bear(f):
    pid = os.fork()
    if pid == 0:
        f()
        os._exit(3)
    return pid
def zombie(f):
    os.waitid(os.P_PID, bear(f), os.WEXITED | os.WNOWAIT)
def counter():
    global slots
    slot, slots = slots, slots + 1
    def run():
        n = 0
        while True:
            if shared[slot] != n:
                os.write(1, b"slot %d has %d, want %d\n" % (slot, shared[slot], n))
            n += 1
            shared[slot] = n
            time.sleep(0.05)
    return run
def elder(prepare):
    child, own = counter(), counter()
    def run():
        prepare()
        bear(child)
        own()
    return run
def orphaner(prepare):
    child = counter()
    def run():
        prepare()
        bear(child)
    return run
for i in range(32): bear(counter())
for i in range(10): bear(elder(os.setsid))
for i in range(10): bear(elder(os.setpgrp))
for i in range(6): zombie(orphaner(lambda: None))
for i in range(4): zombie(orphaner(os.setsid))
for i in range(5): zombie(lambda: os._exit(i))
for i in range(2): zombie(lambda: os.kill(os.getpid(), signal.SIGKILL))
n = 0
while True:
    while n < min(shared[:slots]):
        n += 1
        os.write(1, b"%d\n" % n)
    time.sleep(0.01)
`

// What treeProgram amounts to.
const treeProcesses, treeZombies = 100, 17

// threadsProgram has eight threads that move money to and fro under a lock,
// eight that hand numbers on from queue to queue, and one timer after the other.
const threadsProgram = `
import os, queue, random, threading, time
def say(name, n): os.write(1, b"%s %d\n" % (name, n))
def start(f, *args): threading.Thread(target=f, args=args, daemon=True).start()
lock, accounts = threading.Lock(), [100] * 8
def mover(name):
    n = 0
    while True:
        with lock:
            a, b = random.sample(range(8), 2)
            accounts[a] -= 1
            accounts[b] += 1
            assert sum(accounts) == 800, accounts
        n += 1
        say(name, n)
        time.sleep(0.01)
def stage(a, b):
    while True: b.put(a.get() + 1)
def timer(n):
    say(b"timer", n)
    threading.Timer(0.01, timer, [n + 1]).start()
for i in range(8): start(mover, b"mover%d" % i)
first = q = queue.Queue()
for i in range(8):
    nxt = queue.Queue()
    start(stage, q, nxt)
    q = nxt
timer(1)
n = 0
while True:
    first.put(n)
    m = q.get()
    assert m == n + 8, (m, n)
    n += 1
    say(b"queue", n)
    time.sleep(0.01)
`

func threadsCounts() []string {
	names := []string{"timer", "queue"}
	for i := range 8 {
		names = append(names, fmt.Sprintf("mover%d", i))
	}
	return names
}

// redisScript is a redis without persistence and a client that is connected to
// it all the time. What the client counts is apart from the keys.
const redisScript = `
/usr/bin/redis-server --port 0 --save '' --appendonly no --unixsocket /ctl/s --unixsocketperm 777 --dir /tmp \
	>/tmp/log 2>&1 &
until /usr/bin/redis-cli -s /ctl/s ping >/dev/null 2>&1; do busybox usleep 10000; done
exec /usr/bin/redis-cli -s /ctl/s -n 1 -r -1 -i 0.01 incr n
`

func survivors() []survivor {
	return []survivor{
		{
			name: "shell", args: []string{"/bin/sh", "-c", pipelineScript},
			counts: []string{"a", "b", "pipe"}, more: 20,
		},
		{
			name: "tree", args: []string{"/usr/bin/python3", "-c", treeProgram}, more: 5,
			files: harness.Python, look: (*life).family,
		},
		{
			name: "python", args: []string{"/usr/bin/python3", "-c", threadsProgram},
			counts: threadsCounts(), more: 20, files: harness.Python,
		},
		{name: "go", args: []string{"/bin/progs", "survive"}, more: 20},
		{
			name: "redis", tools: []string{"redis-server", "redis-cli"}, files: hostPrograms("redis-server", "redis-cli"),
			args: []string{"/bin/sh", "-c", redisScript}, more: 20, begin: (*life).fillRedis, look: (*life).redis,
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
	ctx context.Context //nolint:containedctx // of one test, as testing.T has it
	s   survivor
}

func surviveAs(t *testing.T, e box.Engine, progs box.Programs, s survivor, uid uint32) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	c := box.Config{Args: s.args, UID: uid}
	if uid == 0 {
		c.Caps = box.DefaultCaps()
	}
	b := newBox(ctx, t, t.TempDir(), fmt.Sprintf("survive-%d-%s-%d", os.Getpid(), s.name, uid), e, progs, c)
	l := &life{T: t, Box: b, ctx: ctx, s: s}
	l.install()
	l.must(b.Run(ctx))
	if s.begin != nil {
		s.begin(l)
	}
	l.goesOn()
	was := l.looks()
	image := filepath.Join(t.TempDir(), "left")
	if err := b.Checkpoint(ctx, image, "--leave-running"); err != nil {
		t.Fatalf("%v\n%s", err, logErrors(image, "dump.log"))
	}
	l.unchanged("left running", was)
	for round := range rounds {
		image := filepath.Join(t.TempDir(), strconv.Itoa(round))
		if err := b.Checkpoint(ctx, image); err != nil {
			t.Fatalf("round %d: %v\n%s", round, err, logErrors(image, "dump.log"))
		}
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

// unchanged looks before it waits: what a look did is over when it returns.
func (l *life) unchanged(when, was string) {
	l.Helper()
	if is := l.looks(); is != was {
		l.Fatalf("%s: it is\n%s\nand was\n%s", when, is, was)
	}
	l.goesOn()
}

func (l *life) looks() string {
	if l.s.look == nil {
		return ""
	}
	return l.s.look(l)
}

// goesOn waits until the program has printed some more numbers than it has by
// now: those that wait to be read from before a checkpoint prove nothing.
func (l *life) goesOn() {
	l.Helper()
	names := l.s.counts
	if names == nil {
		names = []string{""}
	}
	ctx, cancel := context.WithTimeout(l.ctx, soon)
	defer cancel()
	was, err := l.counted()
	l.must(err)
	is := was
	err = box.Poll(ctx, func() (bool, error) {
		if is, err = l.counted(); err != nil {
			return false, err
		}
		return !slices.ContainsFunc(names, func(n string) bool { return is[n] < was[n]+l.s.more }), nil
	})
	if err != nil {
		l.Fatalf("%v: it had counted %v, and now %v; it says %q", err, was, is, l.tail())
	}
}

// counted returns the last number of each name, after checking that none is
// missing, none came twice, and nothing else was printed. The last line may
// still grow.
func (l *life) counted() (map[string]int, error) {
	last := map[string]int{}
	lines := strings.Split(l.Output(), "\n")
	for i, line := range lines[:len(lines)-1] {
		name, number, named := strings.Cut(line, " ")
		if !named {
			name, number = "", line
		}
		last[name]++
		if number != strconv.Itoa(last[name]) {
			return last, fmt.Errorf("line %d is %q, and should be number %d", i+1, line, last[name])
		}
	}
	return last, nil
}

// tail is what the program said last.
func (l *life) tail() string {
	out := l.Output()
	return out[max(0, len(out)-500):]
}

// family describes the processes of the container: by their numbers in it, whose
// children they are, whose they run as, and the zombies' exit codes. The order
// among siblings is not part of it: a restore may bear an orphan before its
// elders.
func (l *life) family() string {
	l.Helper()
	var all []string
	var visit func(pid int, parent string)
	visit = func(pid int, parent string) {
		m := l.member(pid)
		all = append(all, fmt.Sprintf("%s, child of %s", m, parent))
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
		l.must(err)
		self, _, _ := strings.Cut(m, " ")
		for child := range strings.FieldsSeq(string(children)) {
			n, err := strconv.Atoi(child)
			l.must(err)
			visit(n, self)
		}
	}
	visit(l.PID, "nobody")
	slices.Sort(all)
	text := strings.Join(all, "\n")
	if n := strings.Count(text, "zombie"); len(all) != treeProcesses || n != treeZombies {
		l.Errorf("%d processes with %d zombies, want %d with %d:\n%s", len(all), n, treeProcesses, treeZombies, text)
	}
	return text
}

// member describes one process, beginning with its number in the container.
func (l *life) member(pid int) string {
	l.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	l.must(err)
	facts := map[string][]string{}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		facts[name] = strings.Fields(value)
	}
	inner := func(name string) string { return facts[name][len(facts[name])-1] }
	m := fmt.Sprintf("%s %s of group %s, session %s, user %s", inner("NSpid"), facts["Name"], inner("NSpgid"),
		inner("NSsid"), facts["Uid"])
	if facts["State"][0] != "Z" {
		return m
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	l.must(err)
	fields := strings.Fields(string(stat)) // the last is exit_code (fs/proc/array.c)
	return m + ", zombie of " + fields[len(fields)-1]
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
	size := l.ask("DBSIZE")
	if size != fmt.Sprintf(":%d\r\n", keys) {
		l.Errorf("DBSIZE: %q, want %d keys", size, keys)
	}
	return size + l.ask("EVAL", fmt.Sprintf(
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
			return false, nil // not yet
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
