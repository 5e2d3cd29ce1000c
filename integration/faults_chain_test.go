//go:build integration

package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stasis-cr/stasis/integration/harness"
	"github.com/stasis-cr/stasis/integration/progs/box"
)

// chainPoints are the steps of a checkpoint that builds upon another.
func chainPoints() []string { return []string{"trackers-taken", "keeper-started"} }

// TestFaultChain fails and kills the engine where it takes trackers over from a
// keeper and where it leaves them to one. The container goes on, no keeper stays
// without a record, and the next checkpoint is a full one and says so.
func TestFaultChain(t *testing.T) {
	harness.NeedRoot(t)
	progs := buildFaults(t)
	e := box.Engine{Runtime: objectRuntime(t), Save: harness.Build(t).Stasis}
	var large victim
	for _, v := range victims() {
		if v.name == "large" {
			large = v
		}
	}
	for _, point := range chainPoints() {
		for _, mode := range []string{"error", "kill"} {
			t.Run(point+"/"+mode, func(t *testing.T) { faultChain(t, e, progs, large, point, mode) })
		}
	}
}

func faultChain(t *testing.T, e box.Engine, progs box.Programs, v victim, point, mode string) {
	t.Helper()
	r := newTrial(t, e, progs, v)
	r.start()
	was := r.baseline()
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	r.must(r.save("", at("0"), "--pre-dump"))
	if n := len(r.keepers()); n != 1 {
		t.Fatalf("%d keepers after a pre-dump", n)
	}
	o := r.save(point+"="+mode, at("1"), "--leave-running", "--parent-path", "../0")
	switch {
	case o.killed != (mode == "kill"):
		t.Fatalf("exit %d, killed %v: %s", o.status, o.killed, o.stderr)
	case point == "keeper-started": // the checkpoint was whole by then
		if !exists(at("1/state.img")) {
			t.Error("there is no image")
		}
	case exists(at("1/state.img")):
		t.Error("there is an image")
	}
	r.poll("end of the keepers", func() (bool, error) { return len(r.keepers()) == 0, nil })
	r.as(was)
	r.progress()
	o = r.save("", at("2"), "--leave-running", "--parent-path", "../0")
	r.must(o)
	if !strings.Contains(o.stderr, "a full checkpoint") {
		t.Errorf("the next checkpoint says %q", o.stderr)
	}
	o = r.save("", at("3"), "--leave-running", "--parent-path", "../2")
	r.must(o)
	if o.stderr != "" {
		t.Errorf("the checkpoint after it says %q", o.stderr)
	}
	if err := r.Remove(r.ctx); err != nil {
		t.Fatal(err)
	}
	r.poll("end of the keeper of a container that is gone", func() (bool, error) { return len(r.keepers()) == 0, nil })
	left, err := filepath.Glob("/run/stasis/kept-" + r.ID + "-*")
	if err != nil || len(left) > 0 {
		t.Errorf("records are left: %v, %v", left, err)
	}
}

// keepers are the processes that hold trackers of the container.
func (r *trial) keepers() (pids []string) {
	r.Helper()
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		r.Fatal(err)
	}
	for _, l := range lines {
		text, err := os.ReadFile(l)
		if err == nil && strings.Contains(string(text), "\x00keep-trackers\x00") && strings.Contains(string(text), r.ID) {
			pids = append(pids, filepath.Base(filepath.Dir(l)))
		}
	}
	return pids
}
