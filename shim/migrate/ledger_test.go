package migrate

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestNewID(t *testing.T) {
	a, b := newID(), newID()
	if a == b || !idForm.MatchString(a) {
		t.Errorf("%q, %q", a, b)
	}
}

func TestHostileNames(t *testing.T) {
	for _, id := range []string{"", "..", "../../etc", "0123456789abcdef0123456789abcdeF", newID() + "0", newID() + "/x"} {
		if _, err := openFile(t.Context(), t.TempDir(), id); !errors.Is(err, errProtocol) {
			t.Errorf("%q may be opened: %v", id, err)
		}
		if _, err := findFile(t.Context(), t.TempDir(), id); !errors.Is(err, errProtocol) {
			t.Errorf("%q may be found: %v", id, err)
		}
	}
}

func must[T any](t *testing.T) func(T, error) T {
	t.Helper()
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func TestLedger(t *testing.T) {
	work, id := filepath.Join(t.TempDir(), "a"), newID()
	if _, err := findFile(t.Context(), work, id); !errors.Is(err, errUnknown) {
		t.Errorf("what nobody has heard of: %v", err)
	}
	f := must[*file](t)(openFile(t.Context(), work, id))
	if st, err := os.Stat(f.dir); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", st, err)
	}
	if _, err := openFile(t.Context(), work, id); err == nil {
		t.Error("it can be opened twice")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := findFile(ctx, work, id); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a session works on it, and it is given away: %v", err)
	}
	f.entry.Container = "c1"
	if err := errors.Join(f.settle(outcomeGoing, 0, ""), f.close(), f.close()); err != nil {
		t.Fatal(err)
	}
	g := must[*file](t)(findFile(t.Context(), work, id))
	if g.entry.Outcome != outcomeGoing || g.entry.Container != "c1" || g.lock == nil {
		t.Errorf("%+v", g.entry)
	}
	if dead := must[[]string](t)(sweep(work, time.Now())); len(dead) != 1 || dead[0] != id {
		t.Errorf("dead: %v", dead)
	}
	if must[[]string](t)(sweep(work, time.Now().Add(entryKept+time.Minute))); g.read() != nil || g.entry.Outcome != outcomeGoing {
		t.Errorf("the entry of an unsettled migration is forgotten: %+v", g.entry)
	}
	if err := errors.Join(g.settle(outcomeRunning, 7, ""), g.empty(), g.close()); err != nil {
		t.Fatal(err)
	}
	if h := must[*file](t)(findFile(t.Context(), work, id)); h.entry.PID != 7 || h.lock != nil {
		t.Errorf("%+v", h.entry)
	}
	if _, err := openFile(t.Context(), work, id); err == nil {
		t.Error("a name is used again")
	}
	if dead := must[[]string](t)(sweep(work, time.Now())); len(dead) != 0 {
		t.Errorf("dead: %v", dead)
	}
	if must[[]string](t)(sweep(work, time.Now().Add(entryKept+time.Minute))); len(must[[]os.DirEntry](t)(os.ReadDir(work))) != 0 {
		t.Error("an old entry stays")
	}
}

// TestOpenBeforeEntry: a session that died before it wrote anything has made
// nothing.
func TestOpenBeforeEntry(t *testing.T) {
	work, id := t.TempDir(), newID()
	if err := must[*file](t)(openFile(t.Context(), work, id)).close(); err != nil {
		t.Fatal(err)
	}
	f := must[*file](t)(findFile(t.Context(), work, id))
	if f.entry != (entry{}) || f.lock == nil {
		t.Errorf("%+v", f.entry)
	}
	if err := f.close(); err != nil {
		t.Error(err)
	}
}
