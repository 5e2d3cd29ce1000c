package lazy

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/stasis-cr/stasis/cr/sys"
)

// TestCompact: a journal that fills up becomes a new plan, which the guard has,
// and from which another server makes the same books.
func TestCompact(t *testing.T) {
	plan := samplePlan()
	planFile, err := plan.file()
	if err != nil {
		t.Fatal(err)
	}
	journal, err := newJournal(8)
	if err != nil {
		t.Fatal(err)
	}
	j, err := openJournal(journal)
	if err != nil {
		t.Fatal(err)
	}
	pages, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs, err := newLink()
	if err != nil {
		t.Fatal(err)
	}
	s := &server{
		up: ours, plan: plan, log: slog.New(slog.DiscardHandler), held: kept{[]*os.File{planFile, journal, pages, pages}},
		spaces: []*space{{id: 0, pid: 1}, {id: 1, pid: 9}, {id: 2, gone: true}},
	}
	s.st.j, s.st.tables = j, tablesOf(plan)
	told := make(chan message, 1)
	go func() {
		m, err := theirs.recv()
		if err == nil {
			told <- m
			_ = theirs.send(msgAnswer, 0)
		}
	}()
	for i := range uint64(7) {
		if err := s.compact(); err != nil || s.plan != plan {
			t.Fatalf("after %d entries: a new plan, %v", i, err)
		}
		if _, err := s.st.done(s.spaces[0], (16+i)*page, (17+i)*page); err != nil {
			t.Fatal(err)
		}
	}
	move := change{UFFDMsg: sys.UFFDMsg{Event: sys.UFFDRemap, Start: 40 * page, To: 300 * page, Size: 10 * page}}
	mustApply(t, &s.st.tables, move)
	if err := s.compact(); err != nil || s.plan != plan {
		t.Fatalf("a new plan while an event is outstanding, %v", err)
	}
	s.spaces[0].calm.Store(true)
	if err := s.compact(); err != nil || s.plan == plan || s.st.j.count != 0 {
		t.Fatalf("no new plan with a full journal: %d entries, %v", s.st.j.count, err)
	}
	m := <-told
	if m.kind != msgPlan || len(m.files) != 2 {
		t.Fatalf("the guard was told %q with %d files", m.kind, len(m.files))
	}
	got, err := readPlan(m.files[0])
	if err != nil {
		t.Fatal(err)
	}
	next, err := openJournal(m.files[1])
	if err != nil {
		t.Fatal(err)
	}
	ts, left, err := replay(got, next, 3)
	if err != nil || left != nil {
		t.Fatal(left, err)
	}
	for i, b := range s.st.tables {
		if (b == nil) != (ts[i] == nil) {
			t.Fatalf("book %d: given up %v", i, ts[i] == nil)
		}
		if b != nil {
			sameTable(t, "table", ts[i].table, b.table)
			sameTable(t, "mapped", ts[i].mapped, b.mapped)
		}
	}
}

// TestRecord: the record of another container that took the name is left alone.
func TestRecord(t *testing.T) {
	path := filepath.Join(t.TempDir(), "record")
	open := func() *os.File {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		return f
	}
	old := kept{[]*os.File{nil, nil, open(), nil}}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	mine := kept{[]*os.File{nil, nil, open(), nil}}
	if err := old.removeRecord(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("another's record is gone: %v", err)
	}
	if err := mine.removeRecord(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); err == nil {
		t.Error("the record is left")
	}
}
