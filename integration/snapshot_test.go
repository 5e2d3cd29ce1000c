//go:build integration

package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stasis-cr/stasis/integration/progs/box"
)

// writers is one way to run the snapshot program of integration/progs/c.
type writers struct {
	name   string
	args   string
	uid    uint32
	steady bool // its tasks, mappings and descriptors stay the same
}

func allWriters() []writers {
	return []writers{
		{name: "full", steady: true},
		{name: "full-user", steady: true, uid: 1000},
		{name: "paced", args: "pace=3000", steady: true},
		{name: "paced-user", args: "pace=3000", steady: true, uid: 1000},
		{name: "hot", args: "hot=5", steady: true},
		{name: "huge", args: "thp=1", steady: true},
		{name: "huge-paced", args: "thp=1 pace=3000", steady: true},
		{name: "collapse", args: "thp=1 pace=20000 churn=collapse"},
		{name: "threads", args: "churn=threads"},
		{name: "threads-paced", args: "pace=3000 churn=threads"},
		{name: "fork", args: "churn=fork"},
		{name: "fork-paced", args: "pace=3000 churn=fork"},
		{name: "exec", args: "pace=20000 churn=exec"},
		{name: "spawn", args: "pace=20000 churn=spawn"},
		{name: "maps", args: "churn=maps"},
		{name: "maps-paced", args: "pace=3000 churn=maps"},
		{name: "brk", args: "pace=3000 churn=brk"},
		{name: "dontneed", args: "drop=1", steady: true},
		{name: "dontneed-paced", args: "drop=1 pace=3000", steady: true},
		{name: "dontneed-huge", args: "drop=1 pace=3000 thp=1", steady: true},
		{name: "read", args: "way=read", steady: true},
		{name: "read-paced", args: "way=read pace=3000", steady: true},
		{name: "vmwrite", args: "way=vmwrite pace=20000", steady: true},
		{name: "direct", args: "way=direct", steady: true},
		{name: "direct-paced", args: "way=direct pace=1000", steady: true},
		{name: "shared", args: "mem=shm procs=3 pace=3000", steady: true},
		{name: "memfd", args: "mem=memfd way=mix procs=2", steady: true},
		{name: "memfd-paced", args: "mem=memfd way=mix procs=2 pace=3000", steady: true},
		{name: "memfd-holes", args: "mem=memfd way=mix procs=2 pace=3000 drop=1", steady: true},
		{name: "processes", args: "procs=50 threads=1 pace=1000", steady: true},
		{name: "processes-full", args: "procs=8 threads=1", steady: true},
	}
}

// snapshotRounds is how often each is checkpointed: two rounds, or as many as
// STASIS_ROUNDS says.
func snapshotRounds(t *testing.T) int {
	t.Helper()
	text := os.Getenv("STASIS_ROUNDS")
	if text == "" {
		return 2
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("STASIS_ROUNDS is %q, want a number of rounds", text)
	}
	return n
}

// TestSnapshot checkpoints programs that write as hard as they can and lets them
// run on. Each image is restored beside its original, where the program finds
// out whether it is one instant of it. The original goes through all rounds and
// must not notice anything.
func TestSnapshot(t *testing.T) {
	s := newSnapshots(t)
	rounds := snapshotRounds(t)
	for _, w := range allWriters() {
		t.Run(w.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute+time.Duration(rounds)*20*time.Second)
			defer cancel()
			b := s.start(ctx, t, w, 256)
			for round := range rounds {
				dir := t.TempDir()
				s.round(ctx, t, b, w, trip{image: filepath.Join(dir, "image"), back: s.restore[round%len(s.restore)]})
				if err := os.RemoveAll(dir); err != nil {
					t.Fatal(err)
				}
			}
			if err := b.Go(ctx); err != nil {
				t.Errorf("the original: %v", err)
			}
		})
	}
	if s.rounds == rounds*len(allWriters()) && s.held == 0 {
		t.Error("no program wrote so fast that it was held back")
	}
}

// chained are the writers of TestSnapshotChain.
func chained() []string {
	return []string{
		"full", "paced", "paced-user", "huge-paced", "threads-paced", "fork-paced", "exec", "maps-paced", "brk",
		"dontneed-paced", "direct-paced", "memfd-paced", "memfd-holes", "processes",
	}
}

// chainLength is after how many checkpoints a chain begins anew.
const chainLength = 6

// TestSnapshotChain is [TestSnapshot] with checkpoints that hold only what has
// changed since the one before: each is restored from all that it builds on. In
// every second one memory is saved ahead.
func TestSnapshotChain(t *testing.T) {
	s := newSnapshots(t)
	rounds := max(3, snapshotRounds(t))
	for _, w := range allWriters() {
		if !slices.Contains(chained(), w.name) {
			continue
		}
		t.Run(w.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute+time.Duration(rounds)*30*time.Second)
			defer cancel()
			b := s.start(ctx, t, w, 256)
			var dir, parent string
			for round := range rounds {
				if round%chainLength == 0 {
					dir, parent = t.TempDir(), ""
				}
				if round%2 == 1 {
					parent = saveAhead(ctx, t, b, dir, fmt.Sprintf("%d-ahead", round), parent)
				}
				name := strconv.Itoa(round)
				s.round(ctx, t, b, w, trip{
					image: filepath.Join(dir, name), save: parentFlags(parent), back: s.restore[round%len(s.restore)],
				})
				parent = name
				if round%chainLength == chainLength-1 {
					if err := os.RemoveAll(dir); err != nil {
						t.Fatal(err)
					}
				}
			}
			if err := b.Go(ctx); err != nil {
				t.Errorf("the original: %v", err)
			}
		})
	}
}

// parentFlags name an image beside the one that is to be made.
func parentFlags(name string) []string {
	if name == "" {
		return nil
	}
	return []string{"--parent-path", filepath.Join("..", name)}
}

// saveAhead saves memory only, and returns the name of the image.
func saveAhead(ctx context.Context, t *testing.T, b *box.Box, dir, name, parent string) string {
	t.Helper()
	image := filepath.Join(dir, name)
	if err := b.Checkpoint(ctx, image, append([]string{"--pre-dump"}, parentFlags(parent)...)...); err != nil {
		t.Fatalf("%s: %v\n%s\n%s", image, err, logErrors(image, "dump.log"), result(b))
	}
	writesOn(ctx, t, b)
	return name
}

// snapshots is what all these tests share.
type snapshots struct {
	progs   box.Programs
	engine  box.Engine
	restore [][]string // flags of restore, which take turns
	serial  int
	rounds  int
	held    int // rounds in which the program was held back
}

func newSnapshots(t *testing.T) *snapshots {
	t.Helper()
	if os.Geteuid() != 0 {
		objectsNeed(t, "root")
	}
	s := &snapshots{progs: buildObjects(t), restore: [][]string{nil, {"--lazy-pages"}}}
	s.engine = box.Engine{Runtime: objectRuntime(t), Save: objectEngine(t)}
	return s
}

// box makes a container that is removed when the test ends.
func (s *snapshots) box(ctx context.Context, t *testing.T, dir string, c box.Config) *box.Box {
	t.Helper()
	s.serial++
	b := newBox(ctx, t, dir, fmt.Sprintf("snapshot-%d-%d", os.Getpid(), s.serial), s.engine, s.progs, c)
	return b
}

func (s *snapshots) start(ctx context.Context, t *testing.T, w writers, mib int) *box.Box {
	t.Helper()
	b := s.box(ctx, t, t.TempDir(), w.config(mib))
	if err := b.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if err := b.AwaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	return b
}

func (w writers) config(mib int) box.Config {
	c := box.Config{UID: w.uid}
	c.Args = append([]string{"/bin/cprogs", "snapshot", fmt.Sprintf("mib=%d", mib)}, strings.Fields(w.args)...)
	if w.uid == 0 {
		c.Caps = box.DefaultCaps()
	}
	return c
}

// trip is the way of one image: flags of its checkpoint and of its restore.
type trip struct {
	image      string
	save, back []string
}

// heldBack is a checkpoint's log that tells of such a time.
var heldBack = regexp.MustCompile(`checkpointed .* held_back=[1-9]`)

// round checkpoints b under load, and lets what was saved check itself beside it.
func (s *snapshots) round(ctx context.Context, t *testing.T, b *box.Box, w writers, r trip) {
	t.Helper()
	was, err := b.Look(box.What{Memory: w.steady})
	if err != nil {
		t.Fatal(err)
	}
	before := peek(t, b).newest(t)
	if err := b.Checkpoint(ctx, r.image, append([]string{"--leave-running"}, r.save...)...); err != nil {
		t.Fatalf("%s: %v\n%s\n%s", r.image, err, logErrors(r.image, "dump.log"), result(b))
	}
	log, err := os.ReadFile(filepath.Join(r.image, "dump.log"))
	if err != nil {
		t.Fatal(err)
	}
	if s.rounds++; heldBack.Match(log) {
		s.held++
	}
	writesOn(ctx, t, b)
	if w.steady {
		looksAs(ctx, t, b, was)
	}
	bundle := r.image + "-twin"
	twin := s.beside(ctx, t, b, w, bundle, r)
	if got := peek(t, twin).newest(t); got < before {
		t.Errorf("%s is of write %d, and %d had been made before", r.image, got, before)
	}
	writesOn(ctx, t, twin)
	if err := twin.Go(ctx); err != nil {
		t.Fatalf("%s: %v", r.image, err)
	}
	if err := errors.Join(twin.Remove(ctx), os.RemoveAll(bundle)); err != nil {
		t.Fatal(err)
	}
}

// looksAs waits until nothing in the container shows that it was checkpointed.
func looksAs(ctx context.Context, t *testing.T, b *box.Box, was box.Look) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var diff []string
	err := box.Poll(ctx, func() (bool, error) {
		is, err := b.Look(box.What{Memory: true})
		diff = box.Differ(was, is)
		return len(diff) == 0, err
	})
	if err != nil {
		t.Errorf("not as before the checkpoint: %v\n%s", err, strings.Join(diff, "\n"))
	}
}

// beside restores an image in a container of its own, with a copy of the files
// that the program has open.
func (s *snapshots) beside(ctx context.Context, t *testing.T, b *box.Box, w writers, bundle string, r trip) *box.Box {
	t.Helper()
	if err := os.Mkdir(bundle, 0o755); err != nil {
		t.Fatal(err)
	}
	twin := s.box(ctx, t, bundle, w.config(1))
	files, err := os.ReadDir(b.Path("ctl"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		body, err := os.ReadFile(b.Path("ctl", f.Name()))
		if err == nil {
			err = os.WriteFile(twin.Path("ctl", f.Name()), body, 0o666)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := twin.Restore(ctx, r.image, r.back...); err != nil {
		t.Fatalf("%s: %v\n%s", r.image, err, logErrors(r.image, "restore.log"))
	}
	return twin
}

// writesOn waits until the program has written some more.
func writesOn(ctx context.Context, t *testing.T, b *box.Box) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, soon)
	defer cancel()
	p := peek(t, b)
	was := p.newest(t)
	err := box.Poll(ctx, func() (bool, error) {
		if text := result(b); text != "" {
			return false, errors.New(text)
		}
		return p.newest(t) >= was+500, nil
	})
	if err != nil {
		t.Fatalf("%s: %v; it had written %d pages, and now %d", b.ID, err, was, p.newest(t))
	}
}

// result is what a program that ended by itself said, and what it printed.
func result(b *box.Box) string {
	text, err := os.ReadFile(b.Path("ctl", "result"))
	if err != nil {
		return b.Output()
	}
	return strings.TrimSpace(string(text))
}
