package namespaces

import (
	"fmt"

	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/cr/procfs"
)

// checkPID says why the pid namespace of a container whose init is initPID can't
// be saved: it is the host's own, and a restored process could not have its pid
// back. It returns nil for a private one.
func checkPID(initPID int) error {
	private, err := Private(initPID, "pid")
	if err == nil && !private {
		err = fmt.Errorf("container shares the host's pid namespace, where its pids can't be given back to it: %w",
			errs.ErrUnsupported)
	}
	return err
}

// innermostPID returns the pid that the task pid itself sees: the last of NSpid
// in /proc/pid/status, proc(5).
func innermostPID(pid int) (int, error) {
	st, err := procfs.ReadStatus(pid)
	if err != nil {
		return 0, err
	}
	if len(st.NSpid) == 0 { // a kernel without pid namespaces
		return pid, nil
	}
	return st.NSpid[len(st.NSpid)-1], nil
}
