package main

import (
	"errors"
	"fmt"

	"github.com/stasis-cr/stasis/cr/ociruntime"
)

// passThrough becomes the host's runtime. args begin with the verb. It returns
// only if that fails.
func (a *app) passThrough(g *global, args []string) error {
	path, err := a.findRuntime(g)
	if err != nil {
		return err
	}
	argv := append(append([]string{path}, g.pass...), args...)
	if err := a.exec(path, argv, a.env); err != nil {
		return fmt.Errorf("OCI runtime %s: %w", path, err)
	}
	return nil
}

// findRuntime returns the path of the OCI runtime that --runtime names, or of the
// host's.
func (a *app) findRuntime(g *global) (string, error) {
	path, err := ociruntime.Find(g.runtime, a.getenv)
	if errors.Is(err, ociruntime.ErrNone) {
		err = fmt.Errorf("%w, or --runtime", err)
	}
	return path, err
}
