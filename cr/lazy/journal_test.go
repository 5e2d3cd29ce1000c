package lazy

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/pageserver"
	"github.com/stasis-cr/stasis/cr/sys"
)

func samplePlan() *Plan {
	return &Plan{
		Store:  &blob.PageStore{File: "pages.img", Size: 8 * page, Chunks: []*blob.Chunk{{Stored: 8 * page, Raw: 8 * page, Crc: 5}}},
		Image:  77,
		LogDir: "/work",
		Remote: pageserver.Remote{
			Addr: "h:1", Keys: pageserver.Keys{Cert: "/c", Key: "/k", CA: "/ca"},
			Patience: time.Second, State: []byte("digest"),
		},
		Spaces: []PlanSpace{
			{PID: 1, Pieces: []Piece{p(16, 24, 0, 0), p(40, 50, 2, 5)}, Watched: []Piece{p(10, 60, 0, 0)}},
			{PID: 9, Pieces: []Piece{p(16, 17, 0, 3)}, Watched: []Piece{p(16, 18, 0, 0)}},
			{Gone: true, Pieces: []Piece{}, Watched: []Piece{}},
		},
	}
}

func TestPlan(t *testing.T) {
	want := samplePlan()
	f, err := want.file()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got, err := readPlan(f)
	if err != nil {
		t.Fatal(err)
	}
	if a, b := encoded(t, want), encoded(t, got); !bytes.Equal(a, b) || !reflect.DeepEqual(want.Spaces, got.Spaces) ||
		!reflect.DeepEqual(want.Remote, got.Remote) {
		t.Errorf("%+v, want %+v", got, want)
	}
	if _, err := f.WriteAt([]byte{1}, 0); err == nil {
		t.Error("the plan can be written to")
	}
}

func encoded(t *testing.T, p *Plan) []byte {
	t.Helper()
	b, err := p.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// FuzzPlan: any bytes are a plan that encodes to them again, or an error.
func FuzzPlan(f *testing.F) {
	b, err := samplePlan().Append(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:len(b)-1])
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := DecodePlan(b)
		if err != nil {
			return
		}
		again := encoded(t, p)
		if q, err := DecodePlan(again); err != nil || !bytes.Equal(encoded(t, q), again) {
			t.Errorf("not the same again: %v", err)
		}
	})
}

func testJournal(t *testing.T, entries int) (*Journal, *os.File) {
	t.Helper()
	f, err := newJournal(entries)
	if err != nil {
		t.Fatal(err)
	}
	j, err := openJournal(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = j.close()
		_ = f.Close()
	})
	return j, f
}

// write puts a message where the kernel would.
func (j *Journal) write(t *testing.T, c change) {
	t.Helper()
	b, err := j.tail(c.space)
	if err != nil {
		t.Fatal(err)
	}
	b[0] = c.Event
	words := []uint64{c.Start, c.End, 0}
	switch c.Event {
	case sys.UFFDRemap:
		words = []uint64{c.Start, c.To, c.Size}
	case sys.UFFDFork:
		words = []uint64{uint64(c.FD), 0, 0}
	case sys.UFFDPageFault:
		words = []uint64{0, c.Address, 0}
	}
	for i, w := range words {
		le.PutUint64(b[8+8*i:], w)
	}
}

// TestReplay makes changes at random and kills the server at every place: the
// next one must have the books of the first.
func TestReplay(t *testing.T) {
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 1))
		plan := samplePlan()
		j, f := testJournal(t, 64)
		live := tablesOf(plan)
		for range 40 {
			c := randomChange(rng, len(live))
			if c.Event == eventDone {
				if err := j.append(c.space, c.Event, c.Start, c.End); err != nil {
					t.Fatal(err)
				}
				mustApply(t, &live, c)
				continue
			}
			before := len(live)
			j.write(t, c)
			if c.Event == sys.UFFDPageFault {
				compareReplay(t, plan, f, live, before, nil)
				continue
			}
			changed, err := live.apply(c)
			if errors.Is(err, errAmbiguous) { // the server would end the container
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if !changed {
				j.drop()
				compareReplay(t, plan, f, live, len(live), nil)
				continue
			}
			compareReplay(t, plan, f, live, len(live), &c) // died before it was an entry
			j.judge(c.calm)
			j.keep()
		}
	}
}

func mustApply(t *testing.T, ts *tables, c change) bool {
	t.Helper()
	changed, err := ts.apply(c)
	if err != nil {
		t.Fatal(err)
	}
	return changed
}

func randomChange(rng *rand.Rand, spaces int) change {
	c := change{space: uint32(rng.IntN(spaces))}
	if c.space == 2 { // is given up: its userfaultfd tells nothing any more
		c.space = 0
	}
	c.Event = []byte{
		sys.UFFDPageFault, sys.UFFDRemove, sys.UFFDUnmap, sys.UFFDRemap, sys.UFFDFork, eventDone,
	}[rng.IntN(6)]
	c.calm = c.Event != eventDone && rng.IntN(3) == 0
	c.Start = uint64(rng.IntN(60)) * page
	c.End = c.Start + uint64(1+rng.IntN(4))*page
	if c.Event == sys.UFFDRemap {
		c.To, c.Size = uint64(100+rng.IntN(100))*page, uint64(1+rng.IntN(10))*page
	}
	if c.Event == sys.UFFDFork && spaces > 6 {
		c.Event = sys.UFFDRemove
	}
	return c
}

// compareReplay plays a journal over its plan. last is what its writer had done
// and not yet made an entry.
func compareReplay(t *testing.T, plan *Plan, f *os.File, want tables, have int, last *change) {
	t.Helper()
	j, err := openJournal(f)
	if err != nil {
		t.Fatal(err)
	}
	defer j.close()
	got, left, err := replay(plan, j, have)
	if err != nil {
		t.Fatal(err)
	}
	if (left == nil) != (last == nil) {
		t.Fatalf("left %v, want %v", left, last)
	}
	if left != nil {
		left.calm = last.calm
		mustApply(t, &got, *left)
	}
	if len(got) != len(want) {
		t.Fatalf("%d books, want %d", len(got), len(want))
	}
	for i := range want {
		if (got[i] == nil) != (want[i] == nil) {
			t.Fatalf("book %d: gone %v", i, got[i] == nil)
		}
		if want[i] == nil {
			continue
		}
		sameTable(t, "table", got[i].table, want[i].table)
		sameTable(t, "orphans", got[i].orphans, want[i].orphans)
		sameTable(t, "mapped", got[i].mapped, want[i].mapped)
		if g, w := got[i], want[i]; !slices.Equal(g.owed, w.owed) || !slices.Equal(g.settled, w.settled) || !slices.Equal(g.twins, w.twins) ||
			!slices.Equal(g.echoes, w.echoes) {
			t.Fatalf("book %d: %+v, want %+v", i, *g, *w)
		}
	}
}

func sameTable(t *testing.T, what string, got, want *Table) {
	t.Helper()
	if !slices.Equal(got.Pieces(), want.Pieces()) {
		t.Fatalf("%s: %v, want %v", what, got.Pieces(), want.Pieces())
	}
}

func TestReplayLostChild(t *testing.T) {
	j, f := testJournal(t, 8)
	j.write(t, change{UFFDMsg: sys.UFFDMsg{Event: sys.UFFDFork, FD: 7}})
	j, err := openJournal(f)
	if err != nil {
		t.Fatal(err)
	}
	defer j.close()
	if _, _, err := replay(samplePlan(), j, 3); err == nil || !strings.Contains(err.Error(), "fork") {
		t.Errorf("a lost child: %v", err)
	}
	if _, left, err := replay(samplePlan(), j, 4); err != nil || left == nil || left.Event != sys.UFFDFork {
		t.Errorf("a child that is there: %v, %v", left, err)
	}
}

func TestJournalFull(t *testing.T) {
	j, _ := testJournal(t, 8)
	for i := range 8 {
		if full := i > 6; j.full() != full {
			t.Errorf("full with %d entries: %v", i, j.full())
		}
		if err := j.append(1, eventDone, 0, page); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.append(1, eventDone, 0, page); err == nil {
		t.Error("an entry too many")
	}
	list, left, err := j.changes()
	if err != nil || len(list) != 8 || left != nil {
		t.Errorf("%d entries, %v, %v", len(list), left, err)
	}
	if want := (change{space: 1, UFFDMsg: sys.UFFDMsg{Event: eventDone, End: page}}); !reflect.DeepEqual(list[3], want) {
		t.Errorf("%+v, want %+v", list[3], want)
	}
}

func FuzzParseChange(f *testing.F) {
	f.Add(make([]byte, entrySize))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < entrySize {
			return
		}
		if c, err := parseChange(b); err == nil {
			ts := tablesOf(samplePlan())
			_, err = ts.apply(c)
			_ = err
		}
	})
}
