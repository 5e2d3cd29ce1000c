package namespaces

import (
	"fmt"
	"strings"

	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/cr/procfs"
)

// checkCgroup refuses a task that was moved to another cgroup than its init's:
// the OCI runtime makes one cgroup for a container, and groups that the container
// made beneath it are not recorded. A task that is about to end has left its cgroup
// before it counts as ended.
func checkCgroup(initPID, pid int) error {
	want, err := cgroups(initPID)
	if err != nil {
		return err
	}
	got, err := cgroups(pid)
	if err != nil {
		return err
	}
	for controllers, path := range got {
		if path != want[controllers] {
			if st, err := procfs.ReadStat(pid); err != nil || st.Flags&exiting != 0 {
				return err
			}
			return fmt.Errorf("cgroup %s: task is in %s, init in %s: %w",
				controllers, path, want[controllers], errs.ErrUnsupported)
		}
	}
	return nil
}

// exiting is PF_EXITING of a task's flags (include/linux/sched.h).
const exiting = 0x4

// cgroups returns the path in each hierarchy by its controllers; those of
// version 2 are "unified" (cgroups(7), /proc/pid/cgroup).
func cgroups(pid int) (map[string]string, error) {
	b, err := procfs.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return nil, err
	}
	paths := make(map[string]string)
	for line := range strings.Lines(string(b)) {
		part := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(part) != 3 {
			return nil, fmt.Errorf("/proc/%d/cgroup: %q: %w", pid, line, errs.ErrUnsupported)
		}
		if part[1] == "" {
			part[1] = "unified"
		}
		paths[part[1]] = part[2]
	}
	return paths, nil
}
