package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr"
)

// Nothing is shown for work that is over before quietFor; afterwards the line is
// written anew at most every redrawn.
const (
	quietFor = time.Second
	redrawn  = 100 * time.Millisecond
)

// eraseLine moves to the first column and clears what stands there.
const eraseLine = "\r\x1b[K"

// progress is one line on a terminal. It is safe for concurrent use.
type progress struct {
	w   io.Writer // nil: no terminal
	now func() time.Time

	mu      sync.Mutex
	phase   string
	began   time.Time // of the work
	phased  time.Time // of the phase
	drawn   time.Time
	visible bool
}

// newProgress shows progress on w if that is a terminal.
func newProgress(w io.Writer) *progress {
	p := &progress{now: time.Now}
	if f, ok := w.(*os.File); ok {
		if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err == nil {
			p.w = w
		}
	}
	p.began = p.now()
	return p
}

// update is the engine's callback.
func (p *progress) update(s cr.Progress) {
	if p.w == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	if s.Phase != p.phase {
		p.phase, p.phased = s.Phase, now
	}
	if now.Sub(p.began) < quietFor || now.Sub(p.drawn) < redrawn {
		return
	}
	p.drawn, p.visible = now, true
	io.WriteString(p.w, eraseLine+s.Phase+amount(s, now.Sub(p.phased))) //nolint:errcheck // a terminal, for show
}

// end clears the line.
func (p *progress) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.visible {
		io.WriteString(p.w, eraseLine) //nolint:errcheck // a terminal, for show
	}
	p.visible, p.w = false, nil
}

// amount says how much is done, how fast, and how much of all that is.
func amount(s cr.Progress, took time.Duration) string {
	if s.Done <= 0 {
		return ""
	}
	text := " " + size(uint64(s.Done))
	if s.Total > 0 {
		text += " of " + size(uint64(s.Total))
	}
	if sec := took.Seconds(); sec > 0 {
		text += fmt.Sprintf(", %s/s", size(uint64(float64(s.Done)/sec)))
	}
	if s.Total > 0 {
		text += fmt.Sprintf(", %d %%", min(100, int64(float64(s.Done)*100/float64(s.Total))))
	}
	return text
}

// size is n bytes in words.
func size(n uint64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, unit := float64(n), -1
	for f >= 1023.95 && unit < 4 {
		f /= 1024
		unit++
	}
	return fmt.Sprintf("%.1f %ciB", f, "KMGTP"[unit])
}
