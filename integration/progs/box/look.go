package box

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
)

// Look is what can be seen of a container from outside: one line for each fact.
type Look []string

// What tells which facts a program keeps still by itself.
type What struct {
	Signals bool // pending signals
	Memory  bool // mappings and threads
}

// Look looks at every task of the container. Tasks that end meanwhile are left
// out.
func (b *Box) Look(w What) (Look, error) {
	var l Look
	pids, err := b.pids()
	if err != nil {
		return nil, err
	}
	for _, pid := range pids {
		dir := filepath.Join("/proc", strconv.Itoa(pid))
		l.files(dir)
		l.file(dir, "cgroup")
		if w.Memory {
			l.file(dir, "maps")
		}
		tasks, err := os.ReadDir(filepath.Join(dir, "task"))
		if err != nil {
			continue
		}
		for _, t := range tasks {
			if w.Memory || t.Name() == strconv.Itoa(pid) {
				l.status(filepath.Join(dir, "task", t.Name()), w)
			}
		}
	}
	l.freezer(b.PID)
	return l, nil
}

// PSS adds up the memory of all processes of the container, in KiB, as the kernel
// does where pages are shared: each sharer's part of them.
func (b *Box) PSS() (kib int64, err error) {
	pids, err := b.pids()
	if err != nil {
		return 0, err
	}
	for _, pid := range pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			return 0, err
		}
		_, rest, _ := strings.Cut(string(text), "\nPss:")
		var n int64
		if _, err := fmt.Sscanf(rest, "%d kB", &n); err != nil {
			return 0, fmt.Errorf("smaps_rollup of %d: %w", pid, err)
		}
		kib += n
	}
	return kib, nil
}

// pids lists the processes in the pid namespace of the container.
func (b *Box) pids() ([]int, error) {
	want, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", b.PID))
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid)); err == nil && ns == want {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids, nil
}

func (l *Look) add(format string, args ...any) { *l = append(*l, fmt.Sprintf(format, args...)) }

func (l *Look) file(dir, name string) {
	text, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return
	}
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, "it_value:") && !strings.HasPrefix(line, "ticks:") { // a timerfd's clock runs
			l.add("%s %s", filepath.Join(dir, name), strings.TrimSpace(line))
		}
	}
}

// files lists the descriptors with everything that fdinfo says of them.
func (l *Look) files(dir string) {
	fds, err := os.ReadDir(filepath.Join(dir, "fd"))
	if err != nil {
		return
	}
	for _, fd := range fds {
		to, err := os.Readlink(filepath.Join(dir, "fd", fd.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		l.add("%s/fd %s %s", dir, fd.Name(), to)
		l.file(filepath.Join(dir, "fdinfo"), fd.Name())
	}
}

// status keeps the lines of a task's status that only the task itself changes.
func (l *Look) status(dir string, w What) {
	text, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return
	}
	keep := []string{
		"Name", "Umask", "Uid", "Gid", "Groups", "TracerPid", "SigBlk", "SigIgn", "SigCgt", "CapEff",
		"CapPrm", "NoNewPrivs", "Seccomp", "Seccomp_filters", "Cpus_allowed",
	}
	if w.Signals {
		keep = append(keep, "SigPnd", "ShdPnd")
	}
	for line := range bytes.Lines(text) {
		name, _, _ := bytes.Cut(line, []byte(":"))
		stopped := bytes.HasPrefix(line, []byte("State:\tT"))
		if stopped || slices.Contains(keep, string(name)) {
			l.add("%s %s", dir, bytes.TrimSpace(line))
		}
	}
}

// freezer notes the state of the container's freezer, in either cgroup version.
func (l *Look) freezer(pid int) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return
	}
	for line := range strings.Lines(string(text)) {
		part := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(part) == 3 && part[1] == "freezer" {
			l.file(filepath.Join("/sys/fs/cgroup/freezer", part[2]), "freezer.state")
		}
		if len(part) == 3 && part[1] == "" {
			l.file(filepath.Join("/sys/fs/cgroup", part[2]), "cgroup.freeze")
		}
	}
}

// Differ names what is in only one of two looks, with - for the first and + for
// the second.
func Differ(was, is Look) []string {
	count := map[string]int{}
	for _, s := range was {
		count[s]++
	}
	for _, s := range is {
		count[s]--
	}
	var out []string
	for s, n := range count {
		switch {
		case n > 0:
			out = append(out, "-"+s)
		case n < 0:
			out = append(out, "+"+s)
		}
	}
	sort.Strings(out)
	return out
}
