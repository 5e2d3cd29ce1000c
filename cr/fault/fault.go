// Package fault lets a test fail or kill the engine at a named step.
//
// A step is a call of [Point]. The environment variable STASIS_FAULT names one
// point and what happens there: "NAME=error" makes Point return an error,
// "NAME=kill" sends SIGKILL to the engine itself, which is what the promises of
// the failure rules are tested against. The variable is read once; without it a
// point costs one comparison.
package fault

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
)

// Env is the variable that arms a point.
const Env = "STASIS_FAULT"

var armed = sync.OnceValue(func() (f struct{ name, mode string }) {
	f.name, f.mode, _ = strings.Cut(os.Getenv(Env), "=")
	return f
})

// Injected is the error of an armed point.
type Injected struct{ Name string }

func (e *Injected) Error() string { return fmt.Sprintf("fault injected at %q", e.Name) }

// Point marks a named step.
func Point(name string) error {
	f := armed()
	if f.name != name {
		return nil
	}
	if f.mode == "kill" {
		if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
			return err
		}
		select {} // SIGKILL is on its way
	}
	return &Injected{Name: name}
}
