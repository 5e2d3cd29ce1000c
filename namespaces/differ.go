package namespaces

import (
	"errors"
	"os"
)

// Private reports whether the task pid is in another namespace than this
// process; kind is a name under /proc/pid/ns, such as "net". A kernel that was
// built without a kind has one of it for everybody.
func Private(pid int, kind string) (bool, error) {
	ours, err := nsID(os.Getpid(), kind)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	theirs, err := nsID(pid, kind)
	return ours != theirs, err
}

// Differ names the kinds of namespaces in which the task pid is not together
// with the container's init, in the words of /proc/pid/ns: "pid" is a nested pid
// namespace, "pid_for_children" one that the task's next child would enter. It
// returns nil for a task that has left its namespaces because it is a zombie.
func Differ(initPID, pid int) []string {
	var kinds []string
	for _, kind := range []string{"mnt", "net", "uts", "ipc", "user", "cgroup", "time", "pid"} {
		if !together(initPID, kind, pid, kind) {
			kinds = append(kinds, kind)
		}
	}
	// Against what init itself is in: children of an init that has unshared would
	// leave as well.
	for _, kind := range []string{"pid", "time"} {
		if !together(initPID, kind, pid, kind+"_for_children") {
			kinds = append(kinds, kind+"_for_children")
		}
	}
	return kinds
}

// together compares two links. What can't be read is taken for different,
// unless it isn't there: a kind this kernel lacks or a zombie's (fs/proc/namespaces.c,
// ENOENT). A pid namespace for children that has no first process yet reads as
// missing as well, so it is missing only if the task has none of the others.
func together(a int, kindA string, b int, kindB string) bool {
	x, errA := nsID(a, kindA)
	y, errB := nsID(b, kindB)
	switch {
	case errA == nil && errB == nil:
		return x == y
	case kindB == "pid_for_children" && errors.Is(errB, os.ErrNotExist):
		_, err := nsID(b, "mnt")
		return errors.Is(err, os.ErrNotExist)
	}
	return errors.Is(errors.Join(errA, errB), os.ErrNotExist)
}

// nsID returns the kernel's name of a namespace, such as "net:[4026531840]".
func nsID(pid int, kind string) (string, error) { return os.Readlink(nsPath(pid, kind)) }
