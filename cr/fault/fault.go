// Package fault lets a test fail or kill the engine at a named step.
//
// A step is a call of [Point]. The environment variable STASIS_FAULT names one
// point and what happens there: "NAME=error" makes Point return an error,
// "NAME=kill" sends SIGKILL to the engine itself, which is what the promises of
// the failure rules are tested against. "NAME=kill@3" does so the third time the
// point is passed, and from then on. The variable is read once; without it a
// point costs one comparison.
package fault

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
)

// Env is the variable that arms a point.
const Env = "STASIS_FAULT"

// plan is what the variable asks for.
type plan struct {
	name, mode string
	left       atomic.Int64 // passes that are let through, and the one that is not
}

var armed = sync.OnceValue(func() *plan {
	f := &plan{}
	name, mode, _ := strings.Cut(os.Getenv(Env), "=")
	mode, nth, _ := strings.Cut(mode, "@")
	if n, err := strconv.ParseInt(nth, 10, 64); err == nil {
		f.left.Store(n)
	}
	f.name, f.mode = name, mode
	return f
})

// Injected is the error of an armed point.
type Injected struct{ Name string } //nolint:errname // fault.Injected says it

func (e *Injected) Error() string { return fmt.Sprintf("fault injected at %q", e.Name) }

// Point marks a named step.
func Point(name string) error {
	f := armed()
	if f.name != name || f.left.Add(-1) > 0 {
		return nil
	}
	if f.mode == "kill" {
		self, err := os.FindProcess(os.Getpid())
		if err == nil {
			err = self.Kill()
		}
		if err != nil {
			return err
		}
		select {} // SIGKILL is on its way
	}
	return &Injected{Name: name}
}
