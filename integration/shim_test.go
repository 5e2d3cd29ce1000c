//go:build integration

package integration

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stasis-cr/stasis/integration/harness"
)

// TestCtrPaused checkpoints a container that its user has paused: it must be
// paused afterwards, and go on when it is resumed.
func TestCtrPaused(t *testing.T) {
	w := newWorld(t, harness.Config{})
	w.run(harness.RuntimeName, nil, "c1")
	n := w.waitCount("c1", 5)
	w.ctr("tasks", "pause", "c1")
	w.ctr("tasks", "checkpoint", "c1")
	if s, err := w.Status(t.Context(), "c1"); s != "PAUSED" || err != nil {
		t.Errorf("status %q, %v", s, err)
	}
	w.ctr("tasks", "resume", "c1")
	w.waitStatus("c1", "RUNNING")
	w.waitCount("c1", n)
}

// events collects what containerd publishes, from when it returns.
func (w *world) events() (seen func(topic string) bool) {
	w.t.Helper()
	var mu sync.Mutex
	var all bytes.Buffer
	cmd := w.CtrCommand("events")
	cmd.Stdout = writerFunc(func(p []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		return all.Write(p)
	})
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _, _ = cmd.Process.Kill(), cmd.Wait() })
	seen = func(topic string) bool {
		mu.Lock()
		defer mu.Unlock()
		return strings.Contains(all.String(), topic)
	}
	w.poll("subscription to events", func() (bool, error) {
		w.ctr("namespaces", "label", w.Namespace, fmt.Sprintf("poll=%p", cmd))
		return seen("/namespaces/update"), nil
	})
	return seen
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// TestCtrEvents checks the events that the stock shim never sends: of a
// checkpoint, and of memory that ran out after a restore.
func TestCtrEvents(t *testing.T) {
	w := newWorld(t, harness.Config{})
	seen := w.events()
	limit := []string{"--memory-limit", "33554432"}
	if harness.IsCgroup2() {
		limit = nil // version 1 may hold the memory controller
	}
	w.run(harness.RuntimeName, limit, "c1")
	w.waitCount("c1", 5)
	w.checkpoint(checkpointRef)
	w.poll("event of the checkpoint", func() (bool, error) { return seen("/tasks/checkpointed"), nil })
	w.remove("c1")
	w.restore("c1", checkpointRef)
	if limit == nil {
		return
	}
	if seen("/tasks/oom") {
		t.Fatal("memory ran out before it was used")
	}
	if out, err := w.Exec(t.Context(), "c1", "dd", "if=/dev/zero", "of=/dev/null", "bs=256M", "count=1"); err == nil {
		t.Errorf("dd got more memory than the limit: %q", out)
	}
	w.poll("event of the memory", func() (bool, error) { return seen("/tasks/oom"), nil })
}

// TestCtrRuntimeConfig gives the options as containerd's CRI does, as a table
// that it doesn't read itself.
func TestCtrRuntimeConfig(t *testing.T) {
	w := newWorld(t, harness.Config{})
	runc, err := harness.Tool("runc")
	if err != nil {
		t.Fatal(err)
	}
	mark := filepath.Join(w.dir, "called")
	script := filepath.Join(w.dir, "myrunc")
	text := fmt.Sprintf("#!/bin/sh\necho \"$@\" >> %s\nexec %s \"$@\"\n", mark, runc)
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(w.dir, "options.toml")
	if err := os.WriteFile(config, fmt.Appendf(nil, "BinaryName = %q\n", script), 0o600); err != nil {
		t.Fatal(err)
	}
	w.run(harness.RuntimeName, []string{"--runtime-config-path", config}, "c1")
	w.waitCount("c1", 5)
	w.checkpoint(checkpointRef)
	w.remove("c1")
	w.restore("c1", checkpointRef)
	w.behaves("c1")
	w.endsBy("c1", "KILL", 137)
	calls, err := os.ReadFile(mark)
	if n := strings.Count(string(calls), " create "); err != nil || n != 2 {
		t.Errorf("the runtime in BinaryName created %d containers, %v; want one at the start and one at the restore",
			n, err)
	}
}

// TestShimKilled kills the shim of a running container. containerd then cleans
// up with another process of it, which must find the runtime's state.
func TestShimKilled(t *testing.T) {
	w := newWorld(t, harness.Config{})
	w.run(harness.RuntimeName, nil, "c1")
	w.waitCount("c1", 5)
	pids, err := w.Shims()
	if err != nil || len(pids) != 1 {
		t.Fatalf("shims %v, %v", pids, err)
	}
	p, err := os.FindProcess(pids[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	w.poll("clean-up after the shim", func() (bool, error) {
		left := w.Outside()
		return len(left) == 0, fmt.Errorf("left: %q", left)
	})
}

// TestShimInfo asks the shim what it is, as containerd does at its start.
func TestShimInfo(t *testing.T) {
	b := harness.Build(t)
	for _, flag := range []string{"-v", "-info"} {
		cmd := exec.CommandContext(t.Context(), b.Shim, flag)
		runc, err := harness.Tool("runc")
		if err != nil {
			harness.Missing(t, err.Error())
		}
		cmd.Env = append(os.Environ(), "STASIS_RUNTIME="+runc)
		out, err := cmd.Output()
		if err != nil || len(out) == 0 {
			t.Errorf("%s: %q, %v", flag, out, err)
		}
		for _, want := range []string{harness.RuntimeName, "ociVersionMax"} { // the name, and the runtime's features
			if flag == "-info" && !bytes.Contains(out, []byte(want)) {
				t.Errorf("-info lacks %s: %q", want, out)
			}
		}
	}
}
