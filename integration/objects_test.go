//go:build integration

package integration

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/tracer"
	"github.com/stasis-cr/stasis/integration/progs/box"
)

// object is one self-checking program of integration/progs and what it needs.
type object struct {
	name  string
	c     bool     // from integration/progs/c
	args  []string // besides the name
	caps  []string // besides the default ones; implies root only
	root  bool     // root only
	flags []string // of checkpoint and restore
	moves bool     // it changes its own memory, threads or signals while it waits
}

// objects is one line for each object kind.
func objects() []object {
	return []object{
		// tasks
		{name: "tree", c: true},
		{name: "zombie", c: true},
		{name: "stopped", c: true},
		{name: "identity", c: true},
		{name: "exes", c: true},
		{name: "nextpid", c: true},
		{name: "creds", c: true},
		{name: "seccomp", c: true},
		{name: "sched", c: true},
		{name: "limits", c: true},
		{name: "taskflags", c: true},
		{name: "threads", c: true},
		{name: "crowd", c: true},
		// processor
		{name: "gpr", c: true},
		{name: "xstate", c: true},
		{name: "segments", c: true},
		{name: "debugregs", c: true},
		{name: "vdso", c: true},
		{name: "restart", c: true},
		{name: "restart-eintr", c: true},
		{name: "restart-timeo", c: true},
		{name: "restart-recv", c: true},
		{name: "robust", c: true},
		{name: "rseq", c: true},
		// signals and timers
		{name: "handlers", c: true},
		{name: "pending", c: true},
		{name: "inhandler", c: true},
		{name: "itimers", c: true, moves: true},
		{name: "itimerdue", c: true, moves: true},
		{name: "posixtimers", c: true, moves: true},
		// memory
		{name: "protections", c: true},
		{name: "advice", c: true},
		{name: "mapfiles", c: true},
		{name: "heap", c: true},
		{name: "stacks", c: true},
		{name: "dirty", c: true},
		{name: "manymaps", c: true},
		{name: "sharing", c: true},
		{name: "cow", c: true},
		// files
		{name: "forkfds", c: true},
		{name: "files", moves: true},
		{name: "deleted", moves: true},
		{name: "devices", moves: true},
		{name: "pipes", moves: true},
		{name: "fifos", moves: true},
		{name: "eventfd", moves: true},
		{name: "epoll", moves: true},
		{name: "timerfd", moves: true},
		{name: "signalfd", moves: true},
		{name: "memfd", moves: true},
		{name: "locks", moves: true, flags: []string{"--file-locks"}},
		{name: "manyfds", moves: true},
		// sockets
		{name: "unixpair", moves: true},
		{name: "unixlisten", moves: true},
		{name: "tcplisten", moves: true},
		{name: "udp", moves: true},
		// namespaces
		{name: "hostname", moves: true, caps: []string{"CAP_SYS_ADMIN"}},
		{name: "tmpfs", moves: true},
		// a runtime with threads, timers and a poller of its own
		{name: "goruntime", moves: true},
	}
}

// objectsMode is one way to come from ready to go.
type objectsMode struct {
	name string
	run  func(context.Context, *testing.T, *box.Box, object)
}

func objectsModes() []objectsMode {
	return []objectsMode{
		{"plain", func(context.Context, *testing.T, *box.Box, object) {}},
		{"leave-running", leaveRunning},
		{"restore", killAndRestore},
		{"restore-left", restoreLeft},
		{"restore-lazy", restoreLazy},
	}
}

// TestObjects runs every program in every mode, as an ordinary container of root
// and as one of an ordinary user. The variable STASIS_ENGINE names another
// engine with runc's command line, to test the programs with.
func TestObjects(t *testing.T) {
	if os.Geteuid() != 0 {
		objectsNeed(t, "root")
	}
	progs := buildObjects(t)
	for _, mode := range objectsModes() {
		t.Run(mode.name, func(t *testing.T) {
			engine := box.Engine{Runtime: objectRuntime(t)}
			if mode.name != "plain" {
				engine.Save = objectEngine(t)
			}
			for _, p := range objects() {
				t.Run(p.name+"/root", func(t *testing.T) { runObject(t, mode, engine, progs, p, 0) })
				if !p.root && p.caps == nil {
					t.Run(p.name+"/user", func(t *testing.T) { runObject(t, mode, engine, progs, p, 1000) })
				}
			}
		})
	}
}

func runObject(t *testing.T, mode objectsMode, e box.Engine, progs box.Programs, p object, uid uint32) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	file := "/bin/progs"
	if p.c {
		file = "/bin/cprogs"
	}
	c := box.Config{Args: append([]string{file, p.name}, p.args...), UID: uid}
	if os.Getenv("STASIS_ENGINE") != "" {
		c.Env = []string{"ALLOW_EINTR=1"} // CRIU answers EINTR to timed sleeps
	}
	if uid == 0 {
		c.Caps = append(box.DefaultCaps(), p.caps...)
	}
	id := fmt.Sprintf("objects-%d-%s-%s-%d", os.Getpid(), mode.name, p.name, uid)
	b := startBox(ctx, t, t.TempDir(), id, e, progs, c)
	mode.run(ctx, t, b, p)
	if t.Failed() {
		return
	}
	if err := b.Go(ctx); err != nil {
		t.Error(err)
	}
}

// leaveRunning must not leave a trace in the container.
func leaveRunning(ctx context.Context, t *testing.T, b *box.Box, p object) {
	t.Helper()
	what := box.What{Signals: !p.moves, Memory: !p.moves}
	was, err := b.Look(what)
	if err != nil {
		t.Fatal(err)
	}
	checkpointObject(ctx, t, b, p, "--leave-running")
	var diff []string
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	err = box.Poll(ctx, func() (bool, error) { // a task may be between two looks for go
		is, err := b.Look(what)
		diff = box.Differ(was, is)
		return len(diff) == 0, err
	})
	if err != nil {
		t.Errorf("not as before the checkpoint: %v\n%s", err, strings.Join(diff, "\n"))
	}
}

func killAndRestore(ctx context.Context, t *testing.T, b *box.Box, p object) {
	t.Helper()
	image := checkpointObject(ctx, t, b, p)
	if _, err := b.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	restoreObject(ctx, t, b, p, image)
}

// restoreLeft restores an image whose container ran on and was killed later.
func restoreLeft(ctx context.Context, t *testing.T, b *box.Box, p object) {
	t.Helper()
	image := checkpointObject(ctx, t, b, p, "--leave-running")
	if err := b.Remove(ctx); err != nil {
		t.Fatal(err)
	}
	restoreObject(ctx, t, b, p, image)
}

// TestRestartAgain restores calls that were interrupted before: by the checkpoints
// that left their container running, some of them by a restore in between.
func TestRestartAgain(t *testing.T) {
	if os.Geteuid() != 0 {
		objectsNeed(t, "root")
	}
	progs, e := buildObjects(t), box.Engine{Runtime: objectRuntime(t), Save: objectEngine(t)}
	for name, steps := range map[string]string{"left": "l", "left twice": "ll", "restored": "r", "both": "lrl"} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			id := fmt.Sprintf("restart-again-%d-%s", os.Getpid(), strings.ReplaceAll(name, " ", "-"))
			b := startBox(ctx, t, t.TempDir(), id, e, progs, box.Config{Args: []string{"/bin/cprogs", "restart"}})
			for _, step := range steps + "r" {
				if step == 'l' {
					checkpointObject(ctx, t, b, object{}, "--leave-running")
				} else {
					killAndRestore(ctx, t, b, object{})
				}
			}
			if err := b.Go(ctx); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestRestartGoesOn restores a call that was about to go on after it had been
// interrupted: the kernel has sent the thread back to the instruction, and it was
// stopped again before it got there. As this is a matter of nanoseconds, the test
// does what the kernel would do, to a process that job control has stopped.
func TestRestartGoesOn(t *testing.T) {
	if os.Geteuid() != 0 {
		objectsNeed(t, "root")
	}
	progs, e := buildObjects(t), box.Engine{Runtime: objectRuntime(t), Save: objectEngine(t)}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	id := fmt.Sprintf("restart-goes-on-%d", os.Getpid())
	b := startBox(ctx, t, t.TempDir(), id, e, progs, box.Config{Args: []string{"/bin/cprogs", "heap"}})
	if err := box.Poll(ctx, func() (bool, error) { return stopGoingOn(ctx, b.PID) }); err != nil {
		t.Fatal(err)
	}
	killAndRestore(ctx, t, b, object{})
	if err := unix.Kill(b.PID, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := b.Go(ctx); err != nil {
		t.Error(err)
	}
}

// stopGoingOn stops a process, and says whether it did so in a call that goes on
// by restart_syscall.
func stopGoingOn(ctx context.Context, pid int) (found bool, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		return false, err
	}
	main, err := tracer.Seize(pid, 0)
	if err != nil {
		return false, err
	}
	for kind := tracer.Kind(0); kind != tracer.Group; {
		stop, err := main.Wait(ctx, time.Second)
		if err != nil {
			return false, err
		}
		if kind = stop.Kind; kind == tracer.Signal {
			if err := main.Cont(int(stop.Signal)); err != nil {
				return false, err
			}
		}
	}
	regs, err := main.Regs()
	if err != nil {
		return false, err
	}
	const restartBlock, syscallLen = 516, 2
	if found = int64(regs.Rax) == -restartBlock; found {
		regs.Rax, regs.Rip = unix.SYS_RESTART_SYSCALL, regs.Rip-syscallLen
		err = main.SetRegs(&regs)
	}
	if err := errors.Join(err, main.Detach(0)); err != nil {
		return false, err
	}
	if !found {
		err = unix.Kill(pid, unix.SIGCONT)
	}
	return found, err
}

// restoreLazy goes on at once, and the program checks itself while its memory is
// filled.
func restoreLazy(ctx context.Context, t *testing.T, b *box.Box, p object) {
	t.Helper()
	image := checkpointObject(ctx, t, b, p)
	if _, err := b.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	p.flags = append([]string{"--lazy-pages"}, p.flags...)
	restoreObject(ctx, t, b, p, image)
}

func checkpointObject(ctx context.Context, t *testing.T, b *box.Box, p object, flags ...string) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "image")
	if err := b.Checkpoint(ctx, image, append(flags, p.flags...)...); err != nil {
		t.Fatalf("%v\n%s", err, logErrors(image, "dump.log"))
	}
	return image
}

func restoreObject(ctx context.Context, t *testing.T, b *box.Box, p object, image string) {
	t.Helper()
	if err := b.Restore(ctx, image, p.flags...); err != nil {
		t.Fatalf("%v\n%s", err, logErrors(image, "restore.log"))
	}
}

// logErrors are the lines of an engine's log that tell of an error.
func logErrors(dir, name string) string {
	text, err := os.ReadFile(filepath.Join(dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return "no " + name
	}
	var out []string
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, "Error") || strings.Contains(line, "error") {
			out = append(out, strings.TrimSpace(line))
		}
	}
	return strings.Join(out, "\n")
}

// newBox makes a container that is removed when the test ends.
func newBox(ctx context.Context, t *testing.T, dir, id string, e box.Engine, progs box.Programs, c box.Config) *box.Box {
	t.Helper()
	b, err := box.New(ctx, dir, id, e, progs, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Remove(context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
	})
	return b
}

// startBox is [newBox] whose program runs and has said that it is ready.
func startBox(ctx context.Context, t *testing.T, dir, id string, e box.Engine, progs box.Programs, c box.Config) *box.Box {
	t.Helper()
	b := newBox(ctx, t, dir, id, e, progs, c)
	if err := b.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if err := b.AwaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	return b
}

// objectsNeed skips a test for want of something, and fails it where everything has
// to be there.
func objectsNeed(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("this test needs %s", what)
	}
	t.Skipf("this test needs %s", what)
}

func objectRuntime(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("runc")
	if err != nil {
		objectsNeed(t, "runc")
	}
	return path
}

func buildObjects(t *testing.T) box.Programs {
	t.Helper()
	for _, tool := range []string{"go", "gcc"} {
		if _, err := exec.LookPath(tool); err != nil {
			objectsNeed(t, tool)
		}
	}
	if err := box.Adopt(); err != nil {
		t.Fatal(err)
	}
	progs, err := box.Build(t.Context(), "progs", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return progs
}

// objectEngine builds our command, unless another engine is asked for.
func objectEngine(t *testing.T) string {
	t.Helper()
	if other := os.Getenv("STASIS_ENGINE"); other != "" {
		return other
	}
	out := filepath.Join(t.TempDir(), "stasis")
	if err := box.GoBuild(t.Context(), filepath.Join("..", "cmd", "stasis"), out); err != nil {
		t.Fatal(err)
	}
	return out
}
