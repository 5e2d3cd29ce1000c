package main

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"strings"
	"testing"
	"time"
)

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		in   []int64
		want int64
	}{{[]int64{7}, 7}, {[]int64{9, 1}, 1}, {[]int64{5, 1, 3}, 3}, {[]int64{4, 3, 2, 1}, 2}} {
		var all []sample
		for _, v := range c.in {
			all = append(all, sample{image: v})
		}
		if got := median(all, func(s sample) int64 { return s.image }); got != c.want {
			t.Errorf("median of %v: %d, want %d", c.in, got, c.want)
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

func TestTable(t *testing.T) {
	var out bytes.Buffer
	err := table(&out, []Result{
		{Case: "both", Engine: ours, Frozen: 2 * time.Millisecond, Image: 1 << 20, Memory: 2 << 20},
		{Case: "both", Engine: peer, Frozen: 50 * time.Millisecond, Image: 3 << 20, Memory: 3 << 20},
		{Case: "peer only", Engine: peer, Restore: time.Second},
	})
	if err != nil {
		t.Fatal(err)
	}
	var lines [][]string
	for line := range strings.Lines(out.String()) {
		lines = append(lines, strings.Fields(line))
	}
	both := strings.Join(lines[1], " ")
	if !strings.HasPrefix(both, "both 2.0 50.0 25.0x ") || !strings.HasSuffix(both, " 1.00 3.00 3.0x 2.00 3.00 1.5x") {
		t.Errorf("line of both: %s", both)
	}
	if got := strings.Join(lines[2], " "); !strings.Contains(got, "- 1000.0 -") {
		t.Errorf("line of the peer only: %s", got)
	}
}

func TestTableAlone(t *testing.T) {
	var out bytes.Buffer
	if err := table(&out, []Result{{Case: "c", Engine: ours}}); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out.String(), "ratio ") || strings.Contains(out.String(), peer) {
		t.Errorf("table without a peer names one:\n%s", out.String())
	}
}

func TestParse(t *testing.T) {
	o, err := parse([]string{"-n", "3", "-cases", "MiB", "--json"}, io.Discard)
	if err != nil || o.rounds != 3 || !o.json || !o.cases.MatchString("64 MiB") || o.cases.MatchString("shell") {
		t.Errorf("options: %+v (%v)", o, err)
	}
	for _, args := range [][]string{{"-n", "0"}, {"-cases", "("}, {"--nothing"}} {
		if _, err := parse(args, io.Discard); err == nil {
			t.Errorf("%v: no error", args)
		}
	}
}
