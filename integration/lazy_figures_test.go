//go:build integration

package integration

import (
	"os"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestLazyGiB restores 1 GiB lazily and reports figures, which depend on the
// machine: only that the container runs before its memory is there is checked.
func TestLazyGiB(t *testing.T) {
	e, progs := lazyEngine(t)
	l := newLazy(t, e, progs, 0, "lazy-delays", "1024")
	for round := range 3 {
		begin := time.Now()
		l.restore()
		took := time.Since(begin)
		if len(l.records()) == 0 {
			t.Error("the memory was there when the restore returned")
		}
		if err := l.Go(l.ctx); err != nil {
			t.Fatalf("%v\n%s", err, l.log())
		}
		l.filled()
		text, err := os.ReadFile(l.Path("ctl", "figures"))
		if err != nil {
			t.Fatal(err)
		}
		phases := regexp.MustCompile(`phase name=(map|fill|watch) took=(\S+)`).FindAllString(l.log(), -1)
		t.Logf("round %d: restore returned after %v; first and worst look at a page, and all of them, in us: %s; %s; %s",
			round, took, strings.TrimSpace(string(text)), strings.Join(phases, ", "),
			regexp.MustCompile(`every page.*`).FindString(l.log()))
		if err := l.Remove(l.ctx); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(l.Path("ctl", "result")); err != nil {
			t.Fatal(err)
		}
	}
}
