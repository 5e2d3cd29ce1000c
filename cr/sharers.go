package cr

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/cr/procfs"
	"github.com/stasis-cr/stasis/cr/sys"
)

// sharers refuses running processes that share their memory, as clone(2) makes them
// with CLONE_VM: each would have a copy of its own afterwards. number is what the
// container calls each. A child of vfork(2) is passed over, the parent of which waits
// until it has executed a program: so does the freeze.
func sharers(pids []int, number map[int]int) (refusals []error) {
	sorted := slices.Clone(pids)
	slices.SortFunc(sorted, orderOfMemory)
	for i := 1; i < len(sorted); i++ {
		a, b := sorted[i-1], sorted[i]
		if same, err := sys.Kcmp(a, b, sys.KcmpVM, 0, 0); err != nil || same != 0 || inVfork(a) || inVfork(b) {
			continue
		}
		refusals = append(refusals, &errs.Error{
			PID: number[b], Err: fmt.Errorf("shares its memory with pid %d: %w", number[a], errs.ErrUnsupported),
		})
	}
	return refusals
}

// orderOfMemory sorts processes so that those with the same memory are neighbours.
func orderOfMemory(a, b int) int {
	switch r, err := sys.Kcmp(a, b, sys.KcmpVM, 0, 0); {
	case err != nil: // one of them has ended
		return a - b
	case r == 0:
		return 0
	case r == 1:
		return -1
	}
	return 1
}

// inVfork says whether a thread of a process waits for the child that it has made.
func inVfork(pid int) bool {
	tids, err := threadsOf(pid)
	return err == nil && slices.ContainsFunc(tids, func(tid int) bool {
		s, err := procfs.ReadSyscall(pid, tid)
		return err == nil && (s.NR == unix.SYS_VFORK || s.NR == unix.SYS_CLONE || s.NR == unix.SYS_CLONE3)
	})
}
