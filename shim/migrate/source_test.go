package migrate

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestExpect(t *testing.T) {
	begin := time.Unix(100, 0)
	first := roundFigures{frozenAt: begin, frozen: 3 * time.Millisecond, bytes: 1 << 30, sent: 2 * time.Second}
	at := func(after time.Duration, bytes int64, sent time.Duration) roundFigures {
		return roundFigures{frozenAt: begin.Add(after), frozen: 3 * time.Millisecond, bytes: bytes, sent: sent}
	}
	for _, c := range []struct {
		name        string
		before, now roundFigures
		rate        int64
		least, most time.Duration
		limit       time.Duration
		another     bool
	}{
		{"the first", roundFigures{}, first, 0, launchTime, 150 * time.Millisecond, time.Second, true},
		{"the first, of nothing", roundFigures{}, at(0, 4096, 0), 0, launchTime, 150 * time.Millisecond, time.Second, false},
		{
			"much, and less than before", first, at(4*time.Second, 400<<20, time.Second), 100 << 20,
			350 * time.Millisecond, 420 * time.Millisecond, 200 * time.Millisecond, true,
		},
		{
			"enough", first, at(4*time.Second, 400<<20, time.Second), 100 << 20,
			350 * time.Millisecond, 420 * time.Millisecond, 450 * time.Millisecond, false,
		},
		{
			"hardly less than before", first, at(4*time.Second, 900<<20, 2*time.Second), 225 << 20,
			time.Second, 2 * time.Second, 200 * time.Millisecond, false,
		},
		{
			"all that there is to write", first, at(time.Second, 800<<20, 5*time.Second), 800 << 20,
			5 * time.Second, 6 * time.Second, time.Hour, false,
		},
		{"little", first, at(time.Second, 1<<20, time.Millisecond), 1 << 20, launchTime, 150 * time.Millisecond, time.Millisecond, false},
	} {
		rate, downtime := expect(c.before, c.now)
		if rate != c.rate || downtime < c.least || downtime > c.most {
			t.Errorf("%s: %d bytes a second, %v", c.name, rate, downtime)
		}
		if got := another(c.before, c.now, downtime, c.limit); got != c.another {
			t.Errorf("%s: another round: %v", c.name, got)
		}
	}
}

// TestEmpty: a page store that was sent keeps its size, and takes no room.
func TestEmpty(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pages")
	if err := empty(path); err != nil {
		t.Errorf("without a store: %v", err)
	}
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := empty(path); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || st.Size != 1<<20 || st.Blocks > 16 {
		t.Errorf("%d bytes in %d blocks, %v", st.Size, st.Blocks, err)
	}
}

func TestListenAt(t *testing.T) {
	a, _ := pair(t) // whose address is no host
	for listen, want := range map[string]string{
		"": ":0", "host": "host:0", "host:5": "host:5", "[::1]:7": "[::1]:7", ":9": ":9",
	} {
		if got := listenAt(listen, a); got != want {
			t.Errorf("%q: %q, want %q", listen, got, want)
		}
	}
}
