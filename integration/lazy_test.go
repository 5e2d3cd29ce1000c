//go:build integration

package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stasis-cr/stasis/integration/harness"
	"github.com/stasis-cr/stasis/integration/progs/box"
)

// lazyProgram is a program that uses its memory the moment after a restore.
type lazyProgram struct {
	name string
	told string // what must have happened while memory was still to come, as the log counts it
}

func lazyPrograms() []lazyProgram {
	return []lazyProgram{
		{"touch", "faults"},
		{"fork", "forks"},
		{"move", "moves"},
		{"drop", "drops"},
		{"hole", "unmaps"},
		{"lock", "faults"},
		{"call", "faults"},
		{"exec", "forks"},
		{"end", "spaces"},
		{"huge", "drops"},
		{"storm", "moves"},
		{"storm", "forks"},
	}
}

// lazyBox is a container whose image is to be restored lazily.
type lazyBox struct {
	*testing.T
	*box.Box
	ctx   context.Context //nolint:containedctx // of one test, as testing.T has it
	image string
}

// newLazy saves a container that runs a program, and ends it.
func newLazy(t *testing.T, e box.Engine, progs box.Programs, uid uint32, args ...string) *lazyBox {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	id := fmt.Sprintf("lazy-%d-%s-%d", os.Getpid(), args[0], time.Now().UnixNano())
	c := box.Config{Args: append([]string{"/bin/cprogs"}, args...), UID: uid}
	if uid == 0 {
		c.Caps = box.DefaultCaps()
	}
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	b := startBox(ctx, t, dir, id, e, progs, c)
	l := &lazyBox{t, b, ctx, filepath.Join(t.TempDir(), "image")}
	if err := b.Checkpoint(ctx, l.image); err != nil {
		t.Fatal(err)
	}
	l.wait()
	// It checks itself as soon as it runs.
	if err := os.WriteFile(b.Path("ctl", "go"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	return l
}

func (l *lazyBox) wait() int {
	l.Helper()
	status, err := l.Box.Wait(l.ctx)
	if err != nil {
		l.Fatal(err)
	}
	return status
}

func (l *lazyBox) restore(flags ...string) {
	l.Helper()
	if err := l.Restore(l.ctx, l.image, append([]string{"--lazy-pages"}, flags...)...); err != nil {
		l.Fatalf("%v\n%s", err, logErrors(l.image, "restore.log"))
	}
}

// records are the marks of containers that are lazy.
func (l *lazyBox) records() []string {
	l.Helper()
	found, err := filepath.Glob("/run/stasis/lazy-" + l.ID + "-*")
	if err != nil {
		l.Fatal(err)
	}
	return found
}

// filled waits until guard and server have left.
func (l *lazyBox) filled() {
	l.Helper()
	err := harness.Poll(l.ctx, time.Minute, "end of guard and server", func() (bool, error) {
		return len(l.records()) == 0, nil
	})
	if err != nil {
		l.Fatalf("%v\n%s", err, l.log())
	}
}

func (l *lazyBox) log() string {
	l.Helper()
	text, err := os.ReadFile(filepath.Join(l.image, "restore.log"))
	if err != nil {
		l.Fatal(err)
	}
	return string(text)
}

// counted is what the log counted of a thing, of the server that came to the end.
func (l *lazyBox) counted(what string) int {
	l.Helper()
	m := regexp.MustCompile(`every page is there.* ` + what + `=(\d+)`).FindStringSubmatch(l.log())
	if m == nil {
		l.Fatalf("no count of %s in the log:\n%s", what, l.log())
	}
	n, err := strconv.Atoi(m[1])
	if err != nil {
		l.Fatal(err)
	}
	return n
}

func lazyEngine(t *testing.T) (box.Engine, box.Programs) {
	t.Helper()
	harness.NeedRoot(t)
	return box.Engine{Runtime: objectRuntime(t), Save: harness.Build(t).Stasis}, buildObjects(t)
}

// lazyTries is how often a program is restored that has to be quicker than the
// one who fills its memory, on a machine that may have other work.
const lazyTries = 4

// TestLazy restores each program lazily, and it checks itself at once: what it
// does must have happened while memory was still to come.
func TestLazy(t *testing.T) {
	e, progs := lazyEngine(t)
	for i, p := range lazyPrograms() {
		t.Run(fmt.Sprintf("%s/%s", p.name, p.told), func(t *testing.T) {
			for range lazyTries {
				l := newLazy(t, e, progs, uint32(i%2*1000), "lazy-"+p.name)
				l.restore()
				if err := l.Go(l.ctx); err != nil {
					t.Errorf("%v\n%s", err, l.log())
				}
				l.filled()
				if l.counted(p.told) > 0 {
					return
				}
				t.Logf("no %s while memory was to come:\n%s", p.told, l.log())
			}
			t.Error("memory was there too soon, again and again")
		})
	}
}

// TestLazyLeaves: guard and server are gone when all is there, and so are the
// marks that they make on the container's mappings.
func TestLazyLeaves(t *testing.T) {
	e, progs := lazyEngine(t)
	l := newLazy(t, e, progs, 1000, "lazy-touch")
	if err := os.Remove(l.Path("ctl", "go")); err != nil {
		t.Fatal(err)
	}
	l.restore()
	l.filled()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", l.PID))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "VmFlags") && strings.Contains(line, " um") {
			t.Errorf("a mapping is watched still: %s", line)
		}
	}
	if err := l.Go(l.ctx); err != nil {
		t.Error(err)
	}
}

// TestLazyCheckpoint saves a container that is still lazy: the checkpoint waits
// for the pages, and has them all.
func TestLazyCheckpoint(t *testing.T) {
	e, progs := lazyEngine(t)
	l := newLazy(t, e, progs, 1000, "lazy-touch", "512")
	if err := os.Remove(l.Path("ctl", "go")); err != nil {
		t.Fatal(err)
	}
	l.restore()
	if len(l.records()) == 0 {
		t.Fatal("the container is not lazy")
	}
	again := filepath.Join(t.TempDir(), "again")
	if err := l.Checkpoint(l.ctx, again); err != nil {
		t.Fatal(err)
	}
	l.wait()
	if err := l.Restore(l.ctx, again); err != nil {
		t.Fatal(err)
	}
	if err := l.Go(l.ctx); err != nil {
		t.Error(err)
	}
	if len(l.records()) != 0 {
		t.Errorf("records are left: %v", l.records())
	}
}

// TestLazyDelete removes containers that are still lazy: guard and server leave.
func TestLazyDelete(t *testing.T) {
	e, progs := lazyEngine(t)
	l := newLazy(t, e, progs, 0, "lazy-touch", "512")
	l.restore()
	if err := l.Remove(l.ctx); err != nil {
		t.Fatal(err)
	}
	l.filled()
	l.restore()
	l.filled()
}

// TestLazyWorkingSet: what a run needed is known to the next; what anybody wrote
// there instead changes nothing but the order.
func TestLazyWorkingSet(t *testing.T) {
	e, progs := lazyEngine(t)
	l := newLazy(t, e, progs, 1000, "lazy-touch")
	set := filepath.Join(l.image, "working-set")
	run := func() (known int) {
		t.Helper()
		l.restore()
		if err := l.Go(l.ctx); err != nil {
			t.Errorf("%v\n%s", err, l.log())
		}
		l.filled()
		if err := errors.Join(l.Remove(l.ctx), os.Remove(l.Path("ctl", "result"))); err != nil {
			t.Fatal(err)
		}
		m := regexp.MustCompile(`working_set=(\d+)`).FindStringSubmatch(l.log())
		if m == nil {
			t.Fatalf("no working set in the log:\n%s", l.log())
		}
		known, err := strconv.Atoi(m[1])
		if err != nil {
			t.Fatal(err)
		}
		return known
	}
	if known := run(); known != 0 {
		t.Errorf("the first run knows %d windows", known)
	}
	if known := run(); known == 0 {
		t.Error("the second run knows nothing of the first")
	}
	b, err := os.ReadFile(set)
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string][]byte{"cut": b[:len(b)/2], "empty": nil, "other": append(append([]byte(nil), b...), 1)} {
		if err := os.WriteFile(set, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if known := run(); known != 0 {
			t.Errorf("%s: %d windows are known", name, known)
		}
	}
	if err := errors.Join(os.Remove(set), os.Symlink("/etc/passwd", set)); err != nil {
		t.Fatal(err)
	}
	if known := run(); known != 0 {
		t.Errorf("a link: %d windows are known", known)
	}
}
