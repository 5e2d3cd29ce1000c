//go:build integration

package integration

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
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
	"github.com/stasis-cr/stasis/cr/pageserver"
	"github.com/stasis-cr/stasis/cr/pageserver/pagetest"
	"github.com/stasis-cr/stasis/integration/harness"
)

// counting writes the next number to /tmp/count for ever.
const counting = `cd /tmp; i=0; while :; do i=$((i+1)); echo $i >> count; usleep 20000; done`

// mover is two containerds, and what takes containers at the second.
type mover struct {
	*testing.T
	from, to *world
	keys     pageserver.Keys
	work     string // for memory on its way
	addr     string
	more     []string // flags of the server
	server   *exec.Cmd
	said     bytes.Buffer // by the server
}

// newMover starts two containerds; env is added to that of the second.
func newMover(t *testing.T, env ...string) *mover {
	t.Helper()
	ca := pagetest.New(t)
	m := &mover{
		T: t, from: newWorld(t, harness.Config{}), to: newWorld(t, harness.Config{Env: env}),
		keys: ca.Keys(t, "both", time.Hour), work: t.TempDir(), addr: "127.0.0.1:0",
	}
	m.to.ctr("images", "rm", busyboxRef) // it comes with the container
	t.Cleanup(m.stop)
	return m
}

func (m *mover) flags(w *world) []string {
	return []string{
		"--address", w.Address, "--namespace", w.Namespace, "--work-path", m.work,
		"--tls-cert", m.keys.Cert, "--tls-key", m.keys.Key, "--tls-ca", m.keys.CA,
	}
}

// serve starts the server, at the address of the last one if there was one.
func (m *mover) serve(env ...string) {
	m.Helper()
	args := slices.Concat([]string{"migrate-server", "--listen", m.addr}, m.flags(m.to), m.more)
	m.server = exec.Command(m.to.bins.Stasis, args...)
	m.server.Env = append(os.Environ(), env...)
	m.server.Stderr = &m.said
	m.addr = listening(m.T, m.server)
}

// stop ends the server, if there is one. Its sessions live on.
func (m *mover) stop() {
	if m.server == nil {
		return
	}
	m.server.Process.Kill() //nolint:errcheck // it may have ended
	m.server.Process.Wait() //nolint:errcheck // likewise; sessions keep its stderr open
	m.server = nil
}

// command is a migration.
func (m *mover) command(id string, env []string, flags ...string) *exec.Cmd {
	args := append(append([]string{"migrate"}, m.flags(m.from)...), flags...)
	cmd := exec.CommandContext(m.Context(), m.from.bins.Stasis, append(args, id, m.addr)...)
	cmd.Env = append(os.Environ(), env...)
	return cmd
}

// migrate moves a container, and returns what is said.
func (m *mover) migrate(id string, flags ...string) string {
	m.Helper()
	out, err := m.command(id, nil, flags...).CombinedOutput()
	if err != nil {
		m.Fatalf("%v: %s\n%s", err, out, m.said.Bytes())
	}
	return string(out)
}

// where is the one place at which a container runs, when both sides have come to
// rest: it runs at one only, and nothing is left of it at the other.
func (m *mover) where(id string) *world {
	m.Helper()
	var at *world
	err := harness.Poll(m.Context(), 40*time.Second, "one container "+id, func() (bool, error) {
		a, b := m.status(m.from, id), m.status(m.to, id)
		switch {
		case a == "RUNNING" && b == "":
			at = m.from
		case b == "RUNNING" && a == "":
			at = m.to
		default:
			return false, fmt.Errorf("here %q, there %q", a, b)
		}
		return true, nil
	})
	if err != nil {
		m.Fatalf("%v\nserver: %s", err, m.said.Bytes())
	}
	return at
}

// status is that of a container's task; empty: there is neither task nor container.
func (m *mover) status(w *world, id string) string {
	m.Helper()
	if s, err := w.Status(m.Context(), id); err == nil {
		return s
	}
	for _, kind := range []string{"containers", "snapshots"} {
		out, err := w.Ctr(m.Context(), kind, "ls")
		if err != nil {
			return err.Error()
		}
		if regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(id) + `\s`).MatchString(out) {
			return "in " + kind
		}
	}
	return ""
}

// clean checks that no memory lies around, and no process follows a container.
func (m *mover) clean() {
	m.Helper()
	err := harness.Poll(m.Context(), soon, "clean work directory", func() (bool, error) {
		list, err := os.ReadDir(m.work)
		for _, e := range list {
			if e.IsDir() {
				return false, fmt.Errorf("%s is left", e.Name())
			}
		}
		return err == nil, err
	})
	if err != nil {
		m.Error(err)
	}
	if gates := m.gates(); len(gates) > 0 {
		m.Errorf("gates are left: %v", gates)
	}
}

// gates are those of containers of both sides.
func (m *mover) gates() (all []string) {
	m.Helper()
	for _, w := range []*world{m.from, m.to} {
		list, err := filepath.Glob("/run/stasis/gate-" + w.Namespace + "-*")
		if err != nil {
			m.Fatal(err)
		}
		all = append(all, list...)
	}
	return all
}

// TestMigrate moves a container there and back, as root and as an ordinary user,
// in one piece and with the memory coming later.
func TestMigrate(t *testing.T) {
	m := newMover(t)
	for _, c := range []struct {
		name       string
		run, flags []string
	}{
		{"plain", nil, nil},
		{"lazy", nil, []string{"--lazy-pages"}},
		{"user", []string{"--user", "1000:1000", "--seccomp", "--cap-drop", "CAP_CHOWN"}, nil},
		{"zstd", nil, []string{"--compress", "zstd"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := m.in(t)
			id := "m-" + c.name
			m.from.run(harness.RuntimeName, c.run, id, "/bin/sh", "-c", "echo only here > /tmp/file; rm -f /bin/false;"+counting)
			n := m.counted(m.from, id, 5)
			m.serve()
			defer m.stop()
			said := m.migrate(id, c.flags...)
			if !strings.Contains(said, "runs on "+m.addr) || !strings.Contains(said, "round 1: ") {
				t.Errorf("it says %q", said)
			}
			if m.where(id) != m.to {
				t.Fatal("it runs where it was")
			}
			n = m.counted(m.to, id, n)
			if got := m.to.exec(id, "cat", "/tmp/file"); got != "only here\n" {
				t.Errorf("file: %q", got)
			}
			m.stop()
			m.swap()
			m.serve()
			m.migrate(id, c.flags...) // its image is there
			if m.where(id) != m.to {
				t.Fatal("it did not come back")
			}
			m.counted(m.to, id, n)
			m.to.metrics(id)
			m.to.remove(id)
			m.stop()
			m.clean()
			m.swap()
		})
	}
}

// TestMigrateKeep: with --keep the container stays, without a task; and what it
// prints goes on in the other side's log.
func TestMigrateKeep(t *testing.T) {
	m := newMover(t)
	logs := t.TempDir()
	m.more = []string{"--log-path", logs}
	m.from.runLogged(filepath.Join(t.TempDir(), "log"), nil, "k") // under containerd's own shim
	m.from.waitPrinted("k", 5)
	m.serve()
	m.migrate("k", "--keep")
	if got := m.status(m.from, "k"); got != "STOPPED" {
		t.Errorf("what is kept is %q", got)
	}
	m.from.remove("k")
	if m.where("k") != m.to {
		t.Fatal("it runs where it was")
	}
	log := filepath.Join(logs, "k.log")
	m.to.goesOnPrinting(log)
	if st, err := os.Stat(log); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("log: %v, %v", st, err)
	}
	m.to.remove("k")
	m.clean()
}

// in is the mover in a subtest.
func (m *mover) in(t *testing.T) *mover {
	s := &mover{T: t, from: m.from, to: m.to, keys: m.keys, work: m.work, addr: "127.0.0.1:0"}
	t.Cleanup(s.stop)
	return s
}

// swap lets the next migration go the other way.
func (m *mover) swap() { m.from, m.to, m.addr = m.to, m.from, "127.0.0.1:0" }

// counted waits until the container has counted on from n, without a gap.
func (m *mover) counted(w *world, id string, n int) (got int) {
	m.Helper()
	err := harness.Poll(m.Context(), soon, "count past "+strconv.Itoa(n), func() (bool, error) {
		got = 0
		for s := range strings.FieldsSeq(w.exec(id, "cat", "/tmp/count")) {
			if got++; s != strconv.Itoa(got) {
				m.Fatalf("line %d of the count is %q", got, s)
			}
		}
		return got > n, nil
	})
	if err != nil {
		m.Fatal(err)
	}
	return got
}

// migratePoints are the steps of the source, sessionPoints those of the other
// side, and gatePoints those of the restore there.
func migratePoints() []string {
	return []string{
		"migrate-guarding", "migrate-accepted", "migrate-files", "migrate-round", "migrate-stopped", "migrate-ready",
		"migrate-held", "migrate-went", "migrate-ended",
	}
}

func sessionPoints() []string {
	return []string{
		"session-accepted", "session-image", "session-rootfs", "session-round", "session-final", "session-restoring", "session-ready",
		"session-going", "session-opened", "session-running", "session-filled",
	}
}

func guardPoints() []string { return []string{"guard-placed", "guard-holding"} }

func gatePoints() []string { return []string{"restore-gate", "restore-passed"} }

// TestFaultMigrate fails and kills each side at each of its steps. The container
// must run on one of them, and on one only, with nothing lost.
func TestFaultMigrate(t *testing.T) {
	m := newMover(t)
	for _, how := range []string{"kill", "error"} {
		for _, p := range migratePoints() {
			t.Run("source/"+p+"/"+how, func(t *testing.T) { m.in(t).faulty(fault.Env+"="+p+"="+how, "") })
		}
		for _, p := range guardPoints() {
			t.Run("guard/"+p+"/"+how, func(t *testing.T) { m.in(t).faulty(fault.Env+"="+p+"="+how, "") })
		}
		for _, p := range sessionPoints() {
			t.Run("target/"+p+"/"+how, func(t *testing.T) { m.in(t).faulty("", fault.Env+"="+p+"="+how) })
		}
	}
}

// faulty migrates a container with a fault at one of the sides.
func (m *mover) faulty(source, target string) {
	m.Helper()
	const id = "f"
	m.from.run(harness.RuntimeName, nil, id, "/bin/sh", "-c", counting)
	n := m.counted(m.from, id, 3)
	m.serve(target)
	out, err := m.command(id, []string{source}).CombinedOutput()
	m.Logf("%v: %s", err, out)
	at := m.where(id)
	m.counted(at, id, n)
	m.stop()
	m.serve() // whoever comes next cleans up
	at.remove(id)
	m.clean()
	m.stop()
	if out, err := m.to.Ctr(m.Context(), "images", "rm", busyboxRef); err != nil {
		m.Logf("%v: %s", err, out)
	}
}

// TestFaultMigrateGate kills the restore that waits for the word, or has just got
// it.
func TestFaultMigrateGate(t *testing.T) {
	for _, p := range gatePoints() {
		for _, how := range []string{"kill", "error"} {
			t.Run(p+"/"+how, func(t *testing.T) { newMover(t, fault.Env+"="+p+"="+how).faulty("", "") })
		}
	}
}

// TestMigrateServerDies kills the server while its session waits, and starts it
// again: the session has gone on without it.
func TestMigrateServerDies(t *testing.T) {
	m := newMover(t)
	const id = "d"
	m.from.run(harness.RuntimeName, nil, id, "/bin/sh", "-c", counting)
	n := m.counted(m.from, id, 3)
	m.serve()
	cmd := m.command(id, nil, "--lazy-pages")
	out, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(out)
	for line := ""; !strings.HasPrefix(line, "round 1"); {
		if line, err = r.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	m.stop()
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v\n%s", err, m.said.Bytes())
	}
	at := m.where(id)
	if at != m.to {
		t.Error("the migration failed, though its session lives")
	}
	m.counted(at, id, n)
	at.remove(id)
	m.clean()
}

// TestMigrateRefused: what stands in the way is said in one line, all of it, and
// the container goes on.
func TestMigrateRefused(t *testing.T) {
	m := newMover(t)
	m.from.run(harness.RuntimeName, nil, "r", "/bin/sh", "-c", counting)
	n := m.counted(m.from, "r", 3)
	refused := func(want ...string) {
		t.Helper()
		out, err := m.command("r", nil).CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 1 {
			t.Errorf("%v: %s", err, out)
		}
		for _, w := range want {
			if !strings.Contains(string(out), w) {
				t.Errorf("it says %q, want %q", out, w)
			}
		}
		if lines := strings.Count(string(out), "\n"); lines != 1 {
			t.Errorf("%d lines: %s", lines, out)
		}
		n = m.counted(m.from, "r", n)
	}
	m.addr = "127.0.0.1:1"
	refused("connection refused")
	m.addr = "127.0.0.1:0"
	m.serve()
	good := m.keys
	m.keys = pagetest.New(t).Keys(t, "stranger", time.Hour)
	refused("certificate")
	m.keys = good
	m.to.importBusybox()
	m.to.run(harness.RuntimeName, nil, "r", "/bin/sh", "-c", "sleep 1000")
	refused("container r is there already", "snapshot r")
	m.from.remove("r")
	m.to.remove("r")
	m.clean()
	if err := m.server.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := m.server.Wait(); err != nil {
		t.Errorf("the server ends with %v", err)
	}
	m.server = nil
}
