package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/stasis-cr/stasis/shim/migrate"
)

func TestLine(t *testing.T) {
	for want, p := range map[string]migrate.Progress{
		"files 1.5 MiB": {Phase: "files", Done: 3 << 19},
		"stopped":       {Phase: "stopped"},
		"round 1: [##########..........] 50.0 MiB": {Phase: "memory", Done: 50 << 20, Total: 100 << 20},
		"round 3: 2.0 MiB":                         {Phase: "memory", Round: 2, Done: 2 << 20},
		"round 2: 9.0 MiB sent, written at 4.0 MiB/s, would stand still for 120ms": {
			Phase: "memory", Round: 2, Done: 9 << 20, Total: 9 << 20, Ended: true, Rate: 4 << 20, Downtime: 120 * time.Millisecond,
		},
	} {
		if got := line(p); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// TestBar: without a terminal there is a line for each round and each phase.
func TestBar(t *testing.T) {
	var out bytes.Buffer
	b := &bar{w: &out}
	for _, p := range []migrate.Progress{
		{Phase: "files", Done: 1},
		{Phase: "files", Done: 2},
		{Phase: "memory", Done: 1},
		{Phase: "memory", Done: 2},
		{Phase: "memory", Round: 1, Done: 2, Ended: true},
		{Phase: "stopped"},
	} {
		b.update(p)
	}
	b.end()
	if got := strings.Count(out.String(), "\n"); got != 3 {
		t.Errorf("%d lines: %s", got, out.String())
	}
	b.terminal = true
	b.update(migrate.Progress{Phase: "memory", Done: 1})
	b.end()
	if got := out.String(); !strings.HasSuffix(got, eraseLine) || !strings.Contains(got, eraseLine+"round 1") {
		t.Errorf("on a terminal: %q", got)
	}
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{nil, {"source"}, {"other", "{}"}, {"source", "{"}, {"keep-trackers", "x", "y"}} {
		if err := do(t.Context(), args); err == nil {
			t.Errorf("%q is taken", args)
		}
	}
}
