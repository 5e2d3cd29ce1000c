//go:build integration

package main

import (
	"bytes"
	"encoding/json"
	"os"
	"testing"

	"github.com/stasis-cr/stasis/integration/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

// TestQuick runs every case once, small and without a peer: each must give all
// the figures that it is meant to show, or need a flag that there is not.
func TestQuick(t *testing.T) {
	harness.NeedRoot(t)
	harness.NeedTools(t, "go", "gcc", "runc", "busybox", "redis-server", "python3")
	var out, errs bytes.Buffer
	args := []string{"-quick", "-n", "1", "-peer=false", "-json", "-dir", t.TempDir(), "-disk", t.TempDir()}
	if err := run(t.Context(), args, &out, &errs); err != nil {
		t.Fatalf("%v\n%s", err, &errs)
	}
	var all results
	if err := json.Unmarshal(out.Bytes(), &all); err != nil {
		t.Fatal(err)
	}
	for _, c := range cases(quickScale()) {
		r, ok := all.of(c.name, ours)
		if !ok {
			t.Errorf("%s: no result", c.name)
			continue
		}
		for _, f := range c.show {
			if v, ok := r.Figures[f]; r.Missing == "" && (!ok || v < 0 && f != lost) {
				t.Errorf("%s: %s is %v (there: %v)", c.name, f, v, ok)
			}
		}
	}
}
