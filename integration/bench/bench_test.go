package main

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"strings"
	"testing"
	"time"
)

func TestMedians(t *testing.T) {
	for _, c := range []struct {
		in   []float64
		want float64
	}{{[]float64{7}, 7}, {[]float64{9, 1}, 1}, {[]float64{5, 1, 3}, 3}, {[]float64{4, 3, 2, 1}, 2}} {
		var all []figures
		for _, v := range c.in {
			all = append(all, figures{image: v, frozen: -v})
		}
		if got := medians(all)[image]; got != c.want {
			t.Errorf("median of %v: %v, want %v", c.in, got, c.want)
		}
	}
}

// TestParseFrozen reads a file with every field that the format requires, frozen
// time 46264 us.
func TestParseFrozen(t *testing.T) {
	b, err := hex.DecodeString("4059105506330957" + "19000000" +
		"0a17" + "08e80f" + "10b8e902" + "18904e" + "20f42e" + "28e807" + "3000" + "38c801" + "4800")
	if err != nil {
		t.Fatal(err)
	}
	got, err := parseFrozen(b)
	if want := 46264 * time.Microsecond; err != nil || got != want {
		t.Errorf("frozen: %v (%v), want %v", got, err, want)
	}
	for n := range len(b) {
		if _, err := parseFrozen(b[:n]); !errors.Is(err, errStats) {
			t.Errorf("first %d bytes: error %v, want %v", n, err, errStats)
		}
	}
}

// noted is the file that a container has after n samples: one each second, in
// which it does ten pieces of work and waits as many nanoseconds as there were
// samples before.
func noted(n int64) []byte {
	words := make([]int64, 3+3*ring)
	words[0] = n
	for i := range n {
		at := 3 + 3*(i%ring)
		words[at], words[at+1], words[at+2] = i*1e9, i*10, i
	}
	b := make([]byte, 0, len(words)*8)
	for _, w := range words {
		b = binary.NativeEndian.AppendUint64(b, uint64(w))
	}
	return b
}

func TestParseSamples(t *testing.T) {
	for _, n := range []int64{0, 1, ring - 1, ring, 3*ring + 7} {
		s, err := parseSamples(noted(n))
		if err != nil {
			t.Fatal(err)
		}
		if want := min(n, ring-1); int64(len(s)) != want {
			t.Errorf("after %d: %d samples, want %d", n, len(s), want)
		}
		for i, r := range s {
			if want := n - int64(len(s)) + int64(i); r.count != want*10 {
				t.Fatalf("after %d: sample %d is number %d, want %d", n, i, r.count/10, want)
			}
		}
	}
	if _, err := parseSamples(make([]byte, 100)); !errors.Is(err, errSamples) {
		t.Errorf("a short file: error %v, want %v", err, errSamples)
	}
}

func TestSamples(t *testing.T) {
	s, err := parseSamples(noted(100))
	if err != nil {
		t.Fatal(err)
	}
	const second = instant(time.Second)
	if got := s.count(15 * second / 2); got != 75 {
		t.Errorf("work done after 7.5 s: %v, want 75", got)
	}
	if got := s.count(1000 * second); got != 990 {
		t.Errorf("work done in the end: %v, want 990", got)
	}
	if got := s.longest(5*second, 8*second); got != 9 {
		t.Errorf("longest wait: %v, want that of the first sample after the end, 9 ns", got)
	}
	if got := s.lost(0, 10*second, 20*second); got != 0 {
		t.Errorf("lost by one that works evenly: %v, want 0", got)
	}
	s[15].count, s[16].count = 140, 140
	for i := range s[16:] {
		s[16+i].count = s[15].count
	}
	if got := s.lost(0, 10*second, 20*second); got != 60 {
		t.Errorf("lost by one that does 4 of 10 pieces: %v, want 60", got)
	}
}

// line is the cells of the table's line for a case and a figure.
func line(t *testing.T, out, name string, f figure) []string {
	t.Helper()
	for l := range strings.Lines(out) {
		if rest, ok := strings.CutPrefix(l, name+"  "); ok && strings.Contains(rest, string(f)) {
			return strings.Fields(strings.Replace(rest, string(f), "", 1))
		}
	}
	t.Fatalf("no line for %s of %s:\n%s", f, name, out)
	return nil
}

func TestTable(t *testing.T) {
	tests := []test{
		{name: "both", show: []figure{frozen, image, lost}, goals: []goal{
			{figure: frozen, times: 20}, {figure: frozen, most: 1}, {figure: image, times: 4}, {figure: lost, least: 3},
		}},
		{name: "alone", show: []figure{frozen, image}, goals: []goal{
			{figure: frozen, most: 2, than: "both"}, {figure: image, times: 2},
		}},
		{name: "lazy", show: []figure{first}},
	}
	var out bytes.Buffer
	err := table(&out, tests, []Result{
		{Case: "both", Engine: ours, Figures: figures{frozen: 2, image: 1, lost: 3}},
		{Case: "both", Engine: peer, Figures: figures{frozen: 50, image: 3}},
		{Case: "alone", Engine: ours, Figures: figures{frozen: 4, image: 5}},
		{Case: "lazy", Engine: ours, Missing: "stasis restore --lazy-pages"},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		f    figure
		want string
	}{
		{"both", frozen, "2.00 50.0 25.0x ratio >= 20.0 yes, <= 1.00 NO"},
		{"both", image, "1.00 3.00 3.00x ratio >= 4.00 NO"},
		{"both", lost, "3.00 - - >= 3.00 yes"},
		{"alone", frozen, `4.00 - - <= 2.00x of "both" yes`},
		{"alone", image, "5.00 - - ratio >= 2.00"},
		{"lazy", "not available", "- - - - : stasis restore --lazy-pages"},
	} {
		if got := strings.Join(line(t, out.String(), c.name, c.f), " "); got != c.want {
			t.Errorf("%s of %s: %s, want %s", c.f, c.name, got, c.want)
		}
	}
}

// TestCases: names are what results are found by, goals are about what is shown,
// and refer to cases that there are.
func TestCases(t *testing.T) {
	for _, z := range []scale{fullScale(), quickScale()} {
		seen := map[string]bool{}
		all := cases(z)
		for _, c := range all {
			if seen[c.name] {
				t.Errorf("two cases are %q", c.name)
			}
			seen[c.name] = true
		}
		for _, c := range all {
			for _, g := range c.goals {
				if g.than != "" && !seen[g.than] {
					t.Errorf("%s: a goal refers to %q, which is not there", c.name, g.than)
				}
				if !strings.Contains(fmtFigures(c.show), string(g.figure)) {
					t.Errorf("%s: the goal for %s is not shown", c.name, g.figure)
				}
			}
		}
	}
}

func fmtFigures(all []figure) string {
	var s strings.Builder
	for _, f := range all {
		s.WriteString(string(f) + ";")
	}
	return s.String()
}

func TestParse(t *testing.T) {
	o, err := parse([]string{"-n", "3", "-cases", "MiB", "--json", "-quick"}, io.Discard)
	if err != nil || o.rounds != 3 || !o.json || !o.quick {
		t.Errorf("options: %+v (%v)", o, err)
	}
	for _, c := range wanted(o) {
		if !strings.Contains(c.name, "MiB") || c.mib > 2*quickScale().big && c.name != "64 MiB" {
			t.Errorf("case %q of %d MiB was not asked for", c.name, c.mib)
		}
	}
	for _, args := range [][]string{{"-n", "0"}, {"-cases", "("}, {"--nothing"}} {
		if _, err := parse(args, io.Discard); err == nil {
			t.Errorf("%v: no error", args)
		}
	}
}
