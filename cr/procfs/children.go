package procfs

import (
	"io"
	"strconv"
)

// childrenMost bounds the list: as many pids as Linux can have, of seven digits
// and a blank.
const childrenMost = 8 << 22

// ParseChildren parses /proc/PID/task/TID/children.
func ParseChildren(r io.Reader) ([]int, error) {
	b, err := readAll(r, childrenMost)
	if err != nil {
		return nil, err
	}
	var out []int
	if !decs(b, &out) {
		return nil, badLine(b)
	}
	return out, nil
}

// Children reads which children a thread has, zombies included.
func (root FS) Children(pid, tid int) ([]int, error) {
	return read(root, ParseChildren, strconv.Itoa(pid), "task", strconv.Itoa(tid), "children")
}

// ReadChildren reads /proc/PID/task/TID/children. A child belongs to the thread
// that forked it; all threads' lists together are the process's children. The
// list is sure to be whole only if all those tasks are stopped or frozen
// (proc_tid_children(5)). It takes CONFIG_PROC_CHILDREN (else fs.ErrNotExist).
func ReadChildren(pid, tid int) ([]int, error) { return Proc.Children(pid, tid) }
