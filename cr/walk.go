package cr

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/procfs"
)

// vanished says that err only means that a task ended while it was looked at.
func vanished(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH)
}

// family lists the processes descended from init, init first and every parent
// before its children, by host pid. On running tasks it is a glimpse.
func family(init int) ([]int, error) {
	list := []int{init}
	for i := 0; i < len(list); i++ {
		tids, err := threadsOf(list[i])
		if err != nil {
			if vanished(err) && i > 0 {
				continue
			}
			return nil, err
		}
		for _, tid := range tids {
			children, err := childrenOf(list[i], tid)
			if err != nil && !vanished(err) {
				return nil, err
			}
			for _, c := range children {
				if !slices.Contains(list, c) {
					list = append(list, c)
				}
			}
		}
	}
	return list, nil
}

func childrenOf(pid, tid int) ([]int, error) {
	b, err := procfs.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, tid))
	if err != nil {
		return nil, err
	}
	var out []int
	for f := range strings.FieldsSeq(string(b)) {
		n, err := strconv.Atoi(f)
		if err != nil {
			return nil, fmt.Errorf("children of %d: %w", tid, err)
		}
		out = append(out, n)
	}
	return out, nil
}

// threadsOf lists the threads of a process, the leader first.
func threadsOf(pid int) ([]int, error) {
	out, err := procfs.ReadTasks(pid)
	if err != nil {
		return nil, err
	}
	slices.Sort(out)
	if i := slices.Index(out, pid); i > 0 {
		out = append([]int{pid}, slices.Delete(out, i, i+1)...)
	}
	return out, nil
}

// isZombie says that the task has ended and waits for its parent.
func isZombie(pid int) (bool, error) {
	st, err := procfs.ReadStat(pid)
	if err != nil {
		return false, err
	}
	return st.State == 'Z' || st.State == 'X', nil
}

// containerPID is a process's number in its innermost pid namespace.
func containerPID(st *procfs.Status) int {
	if len(st.NSpid) == 0 {
		return 0
	}
	return st.NSpid[len(st.NSpid)-1]
}
