//go:build integration

package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/fault"
	"github.com/stasis-cr/stasis/integration/harness"
)

// TestFaultLazy kills the server at every step of its own: another one goes on,
// and the program and its children find all their memory.
func TestFaultLazy(t *testing.T) {
	e, progs := lazyEngine(t)
	for _, point := range lazyPoints() {
		for nth := 1; nth <= 3; nth++ {
			t.Run(fmt.Sprintf("%s/%d", point, nth), func(t *testing.T) {
				for range lazyTries {
					l := newLazy(t, e, progs, 1000, "lazy-storm")
					l.Engine.Env = []string{fmt.Sprintf("%s=%s=kill@%d", fault.Env, point, nth)}
					l.restore()
					if err := l.Go(l.ctx); err != nil {
						t.Errorf("%v\n%s", err, l.log())
					}
					l.filled()
					if strings.Contains(l.log(), "another one goes on") {
						return
					}
					t.Logf("no server died:\n%s", l.log())
				}
				t.Error("memory was there too soon, again and again")
			})
		}
	}
}

// killed checks that the container was killed rather than let read zeros, that
// the log has the reason, and that nobody is left.
func (l *lazyBox) killed(why string) {
	l.Helper()
	if status := l.wait(); status != 128+int(unix.SIGKILL) {
		l.Errorf("exit status %d, want that of a kill: %s", status, l.result())
	}
	l.filled()
	if r := l.result(); r != "" {
		l.Errorf("the program came to an end: %s", r)
	}
	if log := l.log(); !strings.Contains(log, "container killed") || !strings.Contains(log, why) {
		l.Errorf("the log does not say that the container was killed for %q:\n%s", why, log)
	}
}

func (l *lazyBox) result() string {
	text, _ := os.ReadFile(l.Path("ctl", "result")) //nolint:errcheck // there is none
	return strings.TrimSpace(string(text))
}

// TestFaultLazyError: an error of the server ends the container.
func TestFaultLazyError(t *testing.T) {
	e, progs := lazyEngine(t)
	l := newLazy(t, e, progs, 1000, "lazy-touch")
	l.Engine.Env = []string{fault.Env + "=lazy-copied=error@200"}
	l.restore()
	l.killed("fault injected")
}

// TestFaultLazyChunk: a chunk that is damaged ends the container; nobody reads
// what is in it, and nobody reads zeros.
func TestFaultLazyChunk(t *testing.T) {
	e, progs := lazyEngine(t)
	l := newLazy(t, e, progs, 1000, "lazy-touch")
	spoilPages(t, filepath.Join(l.image, "pages.img"))
	l.restore()
	l.killed("checksum")
}

// holders are the processes of ours that have the record of a container that is
// lazy, by verb.
func (l *lazyBox) holders(verb string) (pids []int) {
	l.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		l.Fatal(err)
	}
	for _, link := range links {
		to, err := os.Readlink(link)
		if err != nil || !strings.HasPrefix(to, "/run/stasis/lazy-"+l.ID+"-") {
			continue
		}
		parts := strings.Split(link, "/")
		args, err := os.ReadFile(filepath.Join("/proc", parts[2], "cmdline"))
		pid, e := strconv.Atoi(parts[2])
		threads, _ := filepath.Glob(filepath.Join("/proc", parts[2], "task", "*")) //nolint:errcheck // the pattern is good
		holder := len(threads) == 1                                                // named like the server that it was forked from
		if holder {
			args = []byte("holder")
		}
		if err == nil && e == nil && slices.Contains(strings.Split(string(args), "\x00"), verb) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// end kills a process that holds the record, and waits for the end.
func (l *lazyBox) end(verb string) bool {
	l.Helper()
	pids := l.holders(verb)
	if len(pids) == 0 {
		return false
	}
	if unix.Kill(pids[0], unix.SIGKILL) != nil {
		return false
	}
	err := harness.Poll(l.ctx, 10*time.Second, "end of "+verb, func() (bool, error) {
		return !slices.Contains(l.holders(verb), pids[0]), nil
	})
	if err != nil {
		l.Fatal(err)
	}
	return true
}

// TestFaultLazyDeaths kills servers and guards while a program runs: as long as
// not both die at once, it notices nothing.
func TestFaultLazyDeaths(t *testing.T) {
	e, progs := lazyEngine(t)
	for _, verbs := range [][]string{
		{"lazy-server"}, {"lazy-guard"}, {"lazy-guard", "lazy-server"}, {"lazy-server", "lazy-guard", "lazy-server", "lazy-adopt"},
	} {
		t.Run(strings.Join(verbs, "-"), func(t *testing.T) {
			l := newLazy(t, e, progs, 1000, "lazy-touch", "512")
			l.restore()
			for i, verb := range verbs {
				if i > 0 { // whoever died has to be replaced first
					err := harness.Poll(l.ctx, 10*time.Second, verb, func() (bool, error) {
						served := 1 + strings.Count(l.log(), "another one goes on")
						replaced := strings.Count(l.log(), "another one") >= i &&
							strings.Count(l.log(), "filling behind") >= served
						return replaced && len(l.holders(verb)) > 0 || len(l.records()) == 0, nil
					})
					if err != nil {
						t.Fatalf("%v\n%s", err, l.log())
					}
				}
				if !l.end(verb) {
					t.Logf("%s had left already", verb)
				}
			}
			if err := l.Go(l.ctx); err != nil {
				t.Errorf("%v\n%s", err, l.log())
			}
			l.filled()
			if !strings.Contains(l.log(), "another one") {
				t.Errorf("nobody was replaced:\n%s", l.log())
			}
		})
	}
}

// TestFaultLazyAllDeaths: with guard and server dead at once nobody fills the
// memory any more. The program waits, and reads no zeros; it can be removed.
func TestFaultLazyAllDeaths(t *testing.T) {
	e, progs := lazyEngine(t)
	var l *lazyBox
	orphan := func() bool {
		l = newLazy(t, e, progs, 1000, "lazy-touch", "512")
		l.restore()
		guard := l.holders("lazy-guard")
		if len(guard) != 1 || unix.Kill(guard[0], unix.SIGSTOP) != nil {
			return false
		}
		if l.end("lazy-server") && l.end("lazy-guard") {
			return true
		}
		if err := unix.Kill(guard[0], unix.SIGCONT); err != nil {
			t.Error(err)
		}
		return false
	}
	for try := 0; !orphan(); try++ {
		if try == lazyTries {
			t.Fatal("they had left already, again and again")
		}
		l.filled()
	}
	err := harness.Poll(l.ctx, 10*time.Second, "wait of the program", func() (bool, error) {
		if r := l.result(); r != "" {
			t.Fatalf("the program came to an end: %s", r)
		}
		return l.waits(), nil
	})
	if err != nil {
		t.Error(err)
	}
	if len(l.holders("holder")) != 1 {
		t.Errorf("holders: %v", l.holders("holder"))
	}
	if err := l.Remove(l.ctx); err != nil {
		t.Error(err)
	}
	err = harness.Poll(l.ctx, 10*time.Second, "end of the holder", func() (bool, error) {
		return len(l.holders("holder")) == 0, nil
	})
	if err != nil {
		t.Error(err)
	}
	for _, path := range l.records() { // nobody is there to do it; the next restore would
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
	}
}

// waits says whether all threads of the program but the first, which waits for
// them, wait for a page.
func (l *lazyBox) waits() bool {
	l.Helper()
	channels, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/wchan", l.PID))
	if err != nil {
		l.Fatal(err)
	}
	n := 0
	for _, c := range channels {
		if at, err := os.ReadFile(c); err == nil && string(at) == "handle_userfault" {
			n++
		}
	}
	return n > 0 && n >= len(channels)-1
}

// TestFaultLazyEngine fails and kills the engine of a lazy restore: nothing of
// the container is left, nor guard and server.
func TestFaultLazyEngine(t *testing.T) {
	e, progs := lazyEngine(t)
	l := newLazy(t, e, progs, 1000, "lazy-touch")
	for _, point := range []string{"created", "launched", "restore-watch", "restore-finish", "restore-releasing"} {
		for _, how := range []string{"error", "kill"} {
			t.Run(point+"/"+how, func(t *testing.T) {
				l := &lazyBox{t, l.Box, t.Context(), l.image}
				l.Engine.Env = []string{fmt.Sprintf("%s=%s=%s", fault.Env, point, how)}
				err := l.Restore(l.ctx, l.image, "--lazy-pages")
				if err == nil {
					t.Fatal("no error")
				}
				stop := (&trial{T: t, Box: l.Box, ctx: l.ctx}).reapInside()
				defer stop()
				err = harness.Poll(l.ctx, 10*time.Second, "end of guard and server", func() (bool, error) {
					left := slices.Concat(l.holders("lazy-guard"), l.holders("lazy-server"), l.holders("holder"))
					return len(left)+len(l.records()) == 0, nil
				})
				if err != nil {
					t.Error(err)
				}
				l.Engine.Env = nil
				if how == "kill" { // the next one finds nothing half-made
					if err := l.Remove(l.ctx); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
	l.Engine.Env = nil
	l.restore()
	if err := l.Go(l.ctx); err != nil {
		t.Errorf("%v\n%s", err, l.log())
	}
}
