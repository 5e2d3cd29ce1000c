package task

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/errs"
)

// family reads processes written as "pid ppid pgid sid", with z for a zombie
// and r for a subreaper behind.
func family(t testing.TB, lines ...string) []*blob.Process {
	t.Helper()
	var out []*blob.Process
	for _, l := range lines {
		p := &blob.Process{}
		var marks string
		n, err := fmt.Sscan(l, &p.Pid, &p.Ppid, &p.Pgid, &p.Sid, &marks)
		if n < 4 {
			t.Fatalf("%q: %v", l, err)
		}
		if strings.Contains(marks, "z") {
			p.State = blob.Process_STATE_ZOMBIE
		}
		p.ChildSubreaper = strings.Contains(marks, "r")
		out = append(out, p)
	}
	return out
}

const initLine = "1 0 1 1"

// TestGrow plans families as they are met in containers and runs the plans.
func TestGrow(t *testing.T) {
	for _, c := range []struct {
		name    string
		lines   []string
		helpers int // forks of tasks that are not in the image
	}{
		{"init alone", []string{initLine}, 0},
		{"init in a session from outside", []string{"1 0 0 0", "2 1 0 0"}, 0},
		{"init outside any session of ours founds a group", []string{"1 0 1 0", "2 1 1 0", "3 1 0 0"}, 0},
		{"children of init", []string{initLine, "2 1 1 1", "3 1 1 1", "4 2 1 1"}, 0},
		{"numbers out of order", []string{initLine, "900 1 1 1", "3 900 1 1", "70 3 1 1"}, 0},
		{"a shell pipeline", []string{initLine, "7 1 7 1", "8 1 7 1", "9 1 7 1"}, 0},
		{"a pipeline whose first command has ended", []string{initLine, "8 1 7 1", "9 1 7 1"}, 1},
		{"a pipeline whose first command is a zombie", []string{initLine, "7 1 7 1 z", "8 1 7 1", "9 1 7 1 z"}, 0},
		{"two pipelines", []string{initLine, "7 1 7 1", "8 1 7 1", "19 1 18 1", "20 1 18 1"}, 1},
		{"an interactive shell", []string{initLine, "5 1 5 5", "6 5 6 5", "7 5 6 5", "9 5 9 5"}, 0},
		{"a daemon forked once", []string{initLine, "10 1 10 10", "11 10 10 10"}, 0},
		{"a daemon forked twice, its leader gone", []string{initLine, "12 1 11 11"}, 1},
		{"its leader is a zombie", []string{initLine, "11 1 11 11 z", "12 1 11 11"}, 1},
		{"a daemon with workers, its leader gone", []string{initLine, "12 1 11 11", "13 12 11 11", "14 12 14 11", "15 14 14 11"}, 1},
		{"two daemons of one dead session", []string{initLine, "12 1 11 11", "13 1 11 11"}, 1},
		{"daemons of two dead sessions", []string{initLine, "12 1 11 11", "23 1 22 22"}, 2},
		{"dead group in a dead session", []string{initLine, "14 1 13 11", "15 14 13 11"}, 2},
		{"nested sessions", []string{initLine, "2 1 2 2", "3 2 3 3", "4 3 4 4", "5 4 4 4"}, 0},
		{"a child from before setsid", []string{initLine, "2 1 2 2", "3 2 1 1", "4 2 2 2"}, 0},
		{"two generations from before setsid", []string{initLine, "2 1 2 2", "3 2 3 3", "4 3 1 1"}, 0},
		{"an orphan of a living session", []string{initLine, "5 1 5 5", "7 1 5 5"}, 1},
		{"an orphan found before its session's leader", []string{initLine, "3 1 5 5", "5 1 5 5"}, 1},
		{"an orphan in a group of its own", []string{initLine, "5 1 5 5", "7 1 7 5", "8 7 7 5"}, 1},
		{"an orphan leads a session inside", []string{initLine, "3 1 5 5", "4 3 4 4", "5 1 5 5", "6 1 4 4"}, 2},
		{"an orphaned leader with a child from before", []string{initLine, "12 1 12 12", "13 12 11 11"}, 1},
		{"an orphaned leader with a child of a living session", []string{initLine, "5 1 5 5", "12 1 12 12", "13 12 5 5"}, 1},
		{"a subreaper adopts", []string{initLine, "2 1 1 1 r", "9 2 8 8"}, 1},
		{"a subreaper adopts from its own daughter session", []string{initLine, "2 1 2 2 r", "5 2 5 5", "9 2 5 5"}, 1},
		{"subreapers within subreapers", []string{initLine, "2 1 2 2 r", "3 2 3 3 r", "9 3 8 8", "19 2 18 18"}, 2},
		{"a subreaper that leads and was born elsewhere", []string{initLine, "4 1 4 4", "2 4 2 2 r", "3 2 4 4"}, 0},
		{"a group's founder went to another group", []string{initLine, "2 1 1 1", "3 1 2 1"}, 2},
		{"two founders swapped their groups", []string{initLine, "2 1 3 1", "3 1 2 1"}, 2},
		{"zombies everywhere", []string{initLine, "2 1 2 2 z", "3 1 1 1 z", "4 1 9 1 z", "5 1 8 8 z"}, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			image := family(t, c.lines...)
			steps, err := Grow(image)
			if err != nil {
				t.Fatal(err)
			}
			m, err := rebuild(image, steps)
			if err == nil {
				err = m.differences(image)
			}
			if err != nil {
				t.Errorf("%v\nsteps: %+v", err, steps)
			}
			if got := count(steps, StepExit); got != c.helpers {
				t.Errorf("%d helpers, want %d: %+v", got, c.helpers, steps)
			}
		})
	}
}

func count(steps []Step, kind StepKind) (n int) {
	for _, s := range steps {
		if s.Kind == kind {
			n++
		}
	}
	return n
}

// TestGrowRefuses: what no order of forks leads to is refused, not tried.
func TestGrowRefuses(t *testing.T) {
	for _, c := range []struct {
		name  string
		want  error
		lines []string
	}{
		{"nothing", errs.ErrCorrupt, nil},
		{"no init", errs.ErrCorrupt, []string{"2 1 2 2"}},
		{"a pid twice", errs.ErrCorrupt, []string{initLine, "2 1 1 1", "2 1 1 1"}},
		{"a parent that is not there", errs.ErrCorrupt, []string{initLine, "3 2 1 1"}},
		{"two who are each other's parent", errs.ErrCorrupt, []string{initLine, "2 3 1 1", "3 2 1 1"}},
		{"the child of a zombie", errs.ErrCorrupt, []string{initLine, "2 1 1 1 z", "3 2 1 1"}},
		{"init in a session of its child's", errs.ErrCorrupt, []string{"1 0 2 2", "2 1 2 2"}},
		{"a session that its leader is not in", errs.ErrCorrupt, []string{initLine, "2 1 1 1", "3 1 2 2"}},
		{"a leader of a session in another group", errs.ErrCorrupt, []string{initLine, "2 1 1 2", "3 1 2 2"}},
		{"a group over two sessions", errs.ErrCorrupt, []string{initLine, "2 1 9 1", "5 1 5 5", "6 5 9 5"}},
		{"a group led from another session", errs.ErrCorrupt, []string{initLine, "5 1 5 5", "6 5 1 5"}},
		{"a group with a dead session's number", errs.ErrCorrupt, []string{initLine, "3 1 8 8", "4 1 8 1"}},
		{"a group from outside in a session from inside", errs.ErrCorrupt, []string{initLine, "4 1 0 1"}},
		{"a session from outside", errs.ErrUnsupported, []string{initLine, "3 1 0 0"}},
		{"adopted by who is no reaper", errs.ErrUnsupported, []string{initLine, "2 1 1 1", "3 2 9 9"}},
		{"a reaper between", errs.ErrUnsupported, []string{initLine, "2 1 2 2 r", "5 2 5 5", "6 1 5 5"}},
		{"born in two sessions", errs.ErrUnsupported, []string{initLine, "5 1 5 5", "6 5 6 6", "7 6 1 1", "8 6 5 5"}},
		{"a dead session on both sides of a subreaper", errs.ErrUnsupported, []string{initLine, "2 1 1 1 r", "8 2 7 7", "9 1 7 7"}},
		{"leaders born in each other's session", errs.ErrUnsupported, []string{initLine, "2 1 2 2", "3 2 4 4", "4 1 4 4", "5 4 2 2"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			steps, err := Grow(family(t, c.lines...))
			if !errors.Is(err, c.want) {
				t.Errorf("got %v, %+v; want %v", err, steps, c.want)
			}
		})
	}
}

// history lets a container live: each byte of life is what one of its processes
// does next.
func history(life []byte) model {
	m := newModel(1)
	next := int32(2)
	for len(life) >= 3 && len(m) < 60 {
		op, who, arg := life[0], life[1], life[2]
		life = life[3:]
		list := slices.Sorted(maps.Keys(m))
		p := m[list[int(who)%len(list)]]
		other := m[list[int(arg)%len(list)]]
		if p.zombie {
			_ = m.wait(p.ppid, p.pid) //nolint:errcheck // it is the parent's
			continue
		}
		switch op % 12 {
		case 0, 1, 2, 3, 4:
			if m.fork(p.pid, next) == nil {
				next += 1 + int32(arg%3)
			}
		case 5, 6:
			_ = m.setsid(p.pid) //nolint:errcheck // history includes refusals
		case 7:
			_ = m.setpgid(p.pid, p.pid) //nolint:errcheck // as above
		case 8:
			_ = m.setpgid(p.pid, other.pgid) //nolint:errcheck // as above
		case 9, 10:
			if p.pid != 1 {
				_ = m.exit(p.pid) //nolint:errcheck // it lives
				if arg%4 != 0 {
					_ = m.wait(p.ppid, p.pid) //nolint:errcheck // as above
				}
			}
		case 11:
			p.subreaper = p.subreaper || arg%3 == 0
		}
	}
	return m
}

// regrow plans what a history left and runs the plan. An honest refusal is no
// error.
func regrow(life []byte) (refused bool, err error) {
	image := history(life).processes()
	steps, err := Grow(image)
	if errors.Is(err, errs.ErrUnsupported) && !errors.Is(err, errs.ErrCorrupt) {
		return true, nil
	}
	var m model
	if err == nil {
		m, err = rebuild(image, steps)
	}
	if err == nil {
		err = m.differences(image)
	}
	if err != nil {
		return false, fmt.Errorf("%w\nimage: %v\nsteps: %+v", err, image, steps)
	}
	return false, nil
}

func TestGrowRandomHistories(t *testing.T) {
	const rounds = 5000
	rnd := rand.New(rand.NewPCG(1, 2))
	refused := 0
	for range rounds {
		life := make([]byte, 3*(1+rnd.IntN(120)))
		for i := range life {
			life[i] = byte(rnd.Uint32())
		}
		no, err := regrow(life)
		if err != nil {
			t.Fatalf("%x: %v", life, err)
		}
		if no {
			refused++
		}
	}
	// Real containers are tamer than this: most of all histories must do.
	if refused > rounds/4 {
		t.Errorf("%d of %d histories were refused", refused, rounds)
	}
	t.Logf("%d of %d histories were refused", refused, rounds)
}

func FuzzGrowHistory(f *testing.F) {
	f.Add([]byte{0, 0, 0, 5, 1, 0, 0, 1, 0, 9, 1, 1})
	f.Fuzz(func(t *testing.T, life []byte) {
		if _, err := regrow(life[:min(len(life), 900)]); err != nil {
			t.Error(err)
		}
	})
}

// FuzzGrowHostile gives Grow families that no kernel made. A plan that it does
// make must lead there.
func FuzzGrowHostile(f *testing.F) {
	f.Add([]byte{2, 1, 1, 1, 0, 3, 2, 9, 9, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		image := []*blob.Process{{Pid: 1, Pgid: 1, Sid: 1}}
		for ; len(b) >= 5 && len(image) < 40; b = b[5:] {
			p := &blob.Process{
				Pid: int32(b[0] % 16), Ppid: int32(b[1] % 16), Pgid: int32(b[2] % 16), Sid: int32(b[3] % 16),
				ChildSubreaper: b[4]&1 != 0,
			}
			if b[4]&6 == 6 {
				p.State, p.ChildSubreaper = blob.Process_STATE_ZOMBIE, false
			}
			image = append(image, p)
		}
		steps, err := Grow(image)
		if err != nil {
			if !errors.Is(err, errs.ErrCorrupt) && !errors.Is(err, errs.ErrUnsupported) {
				t.Errorf("%v has no reason", err)
			}
			return
		}
		m, err := rebuild(image, steps)
		if err == nil {
			err = m.differences(image)
		}
		if err != nil {
			t.Errorf("%v\nimage: %v\nsteps: %+v", err, image, steps)
		}
	})
}
