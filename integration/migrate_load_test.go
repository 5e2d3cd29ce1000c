//go:build integration

package integration

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/integration/harness"
)

const cprogsRef = "test.stasis.dev/cprogs:1"

// importCprogs makes an image of the self-checking programs, with busybox.
func (w *world) importCprogs() {
	w.t.Helper()
	files, err := harness.Busybox(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	progs := buildObjects(w.t)
	im := harness.Image{
		Ref: cprogsRef,
		Files: slices.Concat(files, harness.Base(), []harness.File{
			{Path: "/bin/cprogs", Mode: 0o755, Source: progs.C},
			{Path: "/ctl/README", Mode: 0o644, Source: "/etc/hostname"},
		}),
		Cmd: []string{"/bin/cprogs"},
		Env: []string{"PATH=/bin"},
	}
	if err := w.Import(w.t.Context(), im); err != nil {
		w.t.Fatal(err)
	}
}

// writes starts the writer of TestSnapshot in a container.
func (m *mover) writes(id string, mib int, args string) {
	m.Helper()
	line := append([]string{"run", "-d", "--null-io", "--runtime", harness.RuntimeName}, harness.RunArgs()...)
	line = append(line, cprogsRef, id, "/bin/cprogs", "snapshot", fmt.Sprintf("mib=%d", mib))
	m.from.ctr(append(line, strings.Fields(args)...)...)
	m.from.poll("writer", func() (bool, error) {
		_, err := m.from.Exec(m.Context(), id, "test", "-e", "/ctl/ready")
		return err == nil, err
	})
}

// checks lets the writer check its memory: it is one instant, and nothing is lost.
func (m *mover) checks(w *world, id string) {
	m.Helper()
	w.exec(id, "sh", "-c", "echo > /ctl/go; echo gone on")
	err := harness.Poll(m.Context(), 40*time.Second, "end of the writer", func() (bool, error) {
		s, err := w.Status(m.Context(), id)
		return s == "STOPPED", err
	})
	if err != nil {
		m.Fatal(err)
	}
	if _, diag, err := w.CtrOutput(m.Context(), "tasks", "delete", id); err != nil || strings.Contains(diag, "non-zero") {
		m.Errorf("the writer says %q, %v", diag, err)
	}
	w.ctr("containers", "delete", id)
}

// TestMigrateLoad moves programs that write as hard as they can, there and back.
func TestMigrateLoad(t *testing.T) {
	m := newMover(t)
	m.from.importCprogs()
	for _, c := range []struct {
		name, args string
		flags      []string
	}{
		{"full", "", nil},
		{"paced", "pace=3000", nil},
		{"paced-lazy", "pace=3000", []string{"--lazy-pages"}},
		{"full-lazy", "", []string{"--lazy-pages"}},
		{"fork-paced", "pace=3000 churn=fork", nil},
		{"processes", "procs=20 threads=1 pace=1000", nil},
		{"processes-lazy", "procs=20 threads=1 pace=1000", []string{"--lazy-pages"}},
		{"shared", "mem=shm procs=3 pace=3000", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := m.in(t)
			m.writes(c.name, 64, c.args)
			for range 2 {
				m.serve()
				t.Log(m.migrate(c.name, c.flags...))
				if m.where(c.name) != m.to {
					t.Fatal("it runs where it was")
				}
				m.stop()
				m.clean()
				m.swap()
			}
			m.checks(m.from, c.name)
		})
	}
}

// TestMigrateLazyDeaths kills those who serve memory that is still to come, one at
// a time: the other one does it.
func TestMigrateLazyDeaths(t *testing.T) {
	m := newMover(t)
	m.from.importCprogs()
	for _, who := range []string{"source", "guard"} {
		t.Run(who, func(t *testing.T) {
			m := m.in(t)
			m.writes(who, 96, "")
			m.serve()
			cmd := m.command(who, nil, "--lazy-pages")
			said := &strings.Builder{}
			cmd.Stderr = said
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			m.to.waitStatus(who, "RUNNING")
			source := cmd.Process.Pid
			if who == "guard" {
				if m.killAll("guard") != 1 {
					t.Fatal("there is not one guard")
				}
			} else if err := unix.Kill(source, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			err := cmd.Wait()
			if exit := (*exec.ExitError)(nil); who == "guard" && err != nil || who == "source" && !errors.As(err, &exit) {
				t.Errorf("%v: %s", err, said)
			}
			if m.where(who) != m.to {
				t.Fatal("it runs where it was")
			}
			m.checks(m.to, who)
			m.clean()
		})
	}
}

// processes are those of this mover's migrations with a verb of the program.
func (m *mover) processes(verb string) (pids []int) {
	m.Helper()
	list, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		m.Fatal(err)
	}
	for _, name := range list {
		b, err := os.ReadFile(name)
		args := strings.Split(string(b), "\x00")
		if err != nil || len(args) < 3 || args[1] != verb ||
			!strings.Contains(args[2], m.from.Address) && !strings.Contains(args[2], m.to.Address) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// killAll kills all processes with a verb, and says how many that were.
func (m *mover) killAll(verb string) (n int) {
	m.Helper()
	for _, pid := range m.processes(verb) {
		if err := unix.Kill(pid, unix.SIGKILL); err == nil {
			n++
		}
	}
	return n
}

// TestMigrateRandomDeaths kills one of those who take part at any time. The
// variable STASIS_ROUNDS says how often.
func TestMigrateRandomDeaths(t *testing.T) {
	m := newMover(t)
	rounds := snapshotRounds(t) * 4
	for n := range rounds {
		verb := []string{"session", "source", "guard", "listen"}[n%4]
		after := time.Duration(rand.Int64N(int64(900 * time.Millisecond)))
		t.Run(fmt.Sprintf("%d-%s-%v", n, verb, after.Round(time.Millisecond)), func(t *testing.T) {
			m := m.in(t)
			m.dies(verb, after, n%3 == 2)
		})
		if t.Failed() {
			return
		}
	}
}

// dies migrates a counter, and kills all of a verb after a time.
func (m *mover) dies(verb string, after time.Duration, lazy bool) {
	m.Helper()
	const id = "x"
	m.from.run(harness.RuntimeName, nil, id, "/bin/sh", "-c", counting)
	n := m.counted(m.from, id, 3)
	m.serve()
	var flags []string
	if lazy {
		flags = []string{"--lazy-pages"}
	}
	cmd := m.command(id, nil, flags...)
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		m.Fatal(err)
	}
	time.Sleep(after) // that it is any time is the point
	killed := m.killAll(verb)
	err := cmd.Wait()
	if verb == "listen" {
		m.stop()
		m.serve()
	}
	at := m.where(id)
	m.Logf("%d killed, runs at its destination: %v, %v: %s", killed, at == m.to, err, said.Bytes())
	m.counted(at, id, n)
	at.remove(id)
	m.clean()
}
