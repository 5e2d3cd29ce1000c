package namespaces

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/cr/procfs"
)

// describeTime records how far the container's clocks are from the host's
// (time_namespaces(7)).
func describeTime(_ context.Context, pid int, ns *blob.Namespaces) (err error) {
	ns.TimeOffsets, err = timeOffsets(pid)
	return err
}

// checkTime refuses a container with other offsets: they can't be changed once
// a time namespace has a task.
func checkTime(_ context.Context, pid int, was *blob.Namespaces) error {
	now, err := timeOffsets(pid)
	if err != nil {
		return err
	}
	if now != was.GetTimeOffsets() {
		return fmt.Errorf("clock offsets are %q, in the image %q: %w", now, was.GetTimeOffsets(), errs.ErrHost)
	}
	return nil
}

// timeOffsets returns the offsets of a private time namespace, "monotonic s ns,
// boottime s ns", and nothing for the host's own.
func timeOffsets(pid int) (string, error) {
	if private, err := Private(pid, "time"); err != nil || !private {
		return "", err
	}
	b, err := procfs.ReadFile(fmt.Sprintf("/proc/%d/timens_offsets", pid))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	return oneLine(string(b)), nil
}
