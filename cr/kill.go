package cr

import (
	"errors"
	"fmt"
	"time"

	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/errs"
)

// kill ends every task of the container and waits for init's end, and until the
// cgroup is empty: a runtime that removes it too early gives up.
func (f *frozen) kill() error {
	if err := unix.Kill(f.c.initPID, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill init: %w", err)
	}
	f.released = true // nothing is left to go on
	f.calm()
	if state, err := f.c.cgroup.GetFreezerState(); err == nil && state == cgroups.Frozen { // none dies in that of v1
		if err := f.thaw(); err != nil {
			return err
		}
	}
	for end := time.Now().Add(freezeBound); time.Now().Before(end); time.Sleep(time.Millisecond) {
		zombie, err := isZombie(f.c.initPID)
		if !f.reap() || !zombie && !vanished(err) {
			continue
		}
		if left, err := f.c.cgroup.GetAllPids(); err != nil || len(left) == 0 {
			return nil //nolint:nilerr // the cgroup is gone already
		}
	}
	return fmt.Errorf("init %d and its cgroup did not end within %v of SIGKILL: %w", f.c.initPID, freezeBound, errs.ErrTimeout)
}

// reap takes the deaths of our tracees, without which they stay zombies that their
// parents don't hear of, and says whether all have ended.
func (f *frozen) reap() (all bool) {
	all = true
	for _, t := range f.attached {
		var ws unix.WaitStatus
		if t.gone {
			continue
		}
		if _, err := unix.Wait4(t.TID, &ws, unix.WALL|unix.WNOHANG, nil); errors.Is(err, unix.ECHILD) {
			t.gone = true
			continue
		}
		all = false
	}
	return all
}
