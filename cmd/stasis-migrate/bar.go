package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/shim/migrate"
)

// bar shows how far a migration has come: a line that is written anew on a
// terminal, and a line for each round elsewhere.
type bar struct {
	w        io.Writer
	terminal bool
	drawn    time.Time
	phase    string
}

const (
	redrawn   = 100 * time.Millisecond
	eraseLine = "\r\x1b[K"
	cells     = 20
)

func newBar(f *os.File) *bar {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return &bar{w: f, terminal: err == nil}
}

// update is called from one goroutine at a time.
func (b *bar) update(p migrate.Progress) {
	said := p.Ended || p.Phase != b.phase && p.Phase != "memory"
	b.phase = p.Phase
	if !b.terminal {
		if said {
			fmt.Fprintln(b.w, line(p))
		}
		return
	}
	if now := time.Now(); said || now.Sub(b.drawn) >= redrawn {
		b.drawn = now
		fmt.Fprint(b.w, eraseLine, line(p))
	}
}

// end clears the line.
func (b *bar) end() {
	if b.terminal {
		fmt.Fprint(b.w, eraseLine)
	}
}

// line is what is shown of p.
func line(p migrate.Progress) string {
	var s strings.Builder
	switch {
	case p.Phase == "memory" && p.Ended:
		fmt.Fprintf(&s, "round %d: %s sent", p.Round, size(p.Done))
	case p.Phase == "memory":
		fmt.Fprintf(&s, "round %d: %s%s", p.Round+1, gauge(p), size(p.Done))
	default:
		s.WriteString(p.Phase)
		if p.Done > 0 {
			s.WriteString(" " + size(p.Done))
		}
	}
	if p.Rate > 0 {
		fmt.Fprintf(&s, ", written at %s/s", size(p.Rate))
	}
	if p.Downtime > 0 {
		fmt.Fprintf(&s, ", would stand still for %v", p.Downtime.Round(time.Millisecond))
	}
	return s.String()
}

// gauge is the bar itself, if it is known how much there is to do.
func gauge(p migrate.Progress) string {
	if p.Total <= 0 {
		return ""
	}
	full := int(min(p.Done, p.Total) * cells / p.Total)
	return "[" + strings.Repeat("#", full) + strings.Repeat(".", cells-full) + "] "
}

func size(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }
