package cr

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stasis-cr/stasis/cr/pageserver"
)

// gateOf is the gate of a container that nobody else has, and its name.
func gateOf(t *testing.T, o GateOrders) (*Gate, string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	}
	id := "gate-" + strings.ReplaceAll(t.Name(), "/", "-") + strings.Repeat("x", 100)
	g, err := MakeGate("root", id, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(g.Close(), RemoveGate("root", id)); err != nil {
			t.Error(err)
		}
	})
	return g, id
}

// arrive brings a restore to the gate; what it gets there comes later.
func arrive(t *testing.T, id string) (*RestoreOptions, *gated, <-chan error) {
	t.Helper()
	o := &RestoreOptions{Root: "root", ID: id}
	r, err := joinGate(o)
	if err != nil || r == nil {
		t.Fatalf("%v, %v", r, err)
	}
	passed := make(chan error, 1)
	ctx, cancel := r.watch(t.Context())
	t.Cleanup(cancel)
	go func() { passed <- r.pass(ctx) }()
	return o, r, passed
}

func TestGateOpens(t *testing.T) {
	g, id := gateOf(t, GateOrders{LazyPages: true, PageServer: pageserver.Remote{Addr: "h:1", State: []byte{7}}})
	o, r, passed := arrive(t, id)
	if !o.LazyPages || o.PageServer.Addr != "h:1" || o.PageServer.State[0] != 7 {
		t.Errorf("orders: %+v", o)
	}
	if err := g.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-passed:
		t.Fatalf("it is past a gate that is shut: %v", err)
	default:
	}
	if err := g.Open(); err != nil {
		t.Fatal(err)
	}
	if err := <-passed; err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := PassedGate(ctx, "root", id); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a restore stands at the gate: %v", err)
	}
	if err := r.close(); err != nil {
		t.Fatal(err)
	}
	if passed, err := PassedGate(t.Context(), "root", id); err != nil || !passed {
		t.Errorf("it has passed: %v, %v", passed, err)
	}
	if err := g.Close(); err != nil {
		t.Error(err)
	}
	if _, err := joinGate(&RestoreOptions{Root: "root", ID: id}); err == nil {
		t.Error("a gate that was given up is open")
	}
	if err := RemoveGate("root", id); err != nil {
		t.Error(err)
	}
	if r, err := joinGate(&RestoreOptions{Root: "root", ID: id}); r != nil || err != nil {
		t.Errorf("without a gate: %v, %v", r, err)
	}
}

// TestGateShut: whose holder goes, that restore fails, and has not passed.
func TestGateShut(t *testing.T) {
	g, id := gateOf(t, GateOrders{})
	_, r, passed := arrive(t, id)
	if err := g.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(g.l.Close(), g.c.Close()); err != nil { // as the kernel does when it dies
		t.Fatal(err)
	}
	if err := <-passed; !errors.Is(err, errShut) {
		t.Errorf("it has passed: %v", err)
	}
	if err := r.close(); err != nil {
		t.Fatal(err)
	}
	if passed, err := PassedGate(t.Context(), "root", id); err != nil || passed {
		t.Errorf("%v, %v", passed, err)
	}
	if r, err := joinGate(&RestoreOptions{Root: "root", ID: id}); err == nil || !strings.Contains(err.Error(), "migrate-server") {
		t.Errorf("a restore does not mind a gate whose holder has died: %v, %v", r, err)
	}
}

// TestGateAlone: nobody comes.
func TestGateAlone(t *testing.T) {
	g, id := gateOf(t, GateOrders{})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := g.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	if passed, err := PassedGate(t.Context(), "root", id); err != nil || passed {
		t.Errorf("%v, %v", passed, err)
	}
	if st, err := os.Stat(filepath.Dir(gateLock(gateDir("root", id)))); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", st, err)
	}
}
