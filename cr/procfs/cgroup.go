package procfs

import (
	"bytes"
	"io"
	"strconv"
	"strings"
)

// Cgroup is one line of /proc/PID/cgroup (cgroups(7)).
type Cgroup struct {
	Hierarchy   int      // 0: cgroup v2
	Controllers []string // of a v1 hierarchy; "name=..." for one without controllers
	Path        string   // below the hierarchy's root, as the reader's cgroup namespace sees it
}

// ParseCgroup parses /proc/PID/cgroup.
func ParseCgroup(r io.Reader) ([]Cgroup, error) {
	var out []Cgroup
	err := eachLine(r, func(line []byte) bool {
		id, rest, ok := bytes.Cut(line, []byte(":"))
		names, path, ok2 := cutControllers(rest)
		c := Cgroup{Path: string(path)}
		if len(names) > 0 {
			c.Controllers = strings.Split(string(names), ",")
		}
		out = append(out, c)
		return ok && ok2 && dec(id, &out[len(out)-1].Hierarchy)
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// cutControllers cuts at the first ":/": a named hierarchy's name may hold a
// colon, and every path begins with a slash.
func cutControllers(b []byte) (names, path []byte, ok bool) {
	i := bytes.Index(b, []byte(":/"))
	if i < 0 {
		return nil, nil, false
	}
	return b[:i], b[i+1:], true
}

// Cgroup reads which cgroups a process is in.
func (root FS) Cgroup(pid int) ([]Cgroup, error) {
	return read(root, ParseCgroup, strconv.Itoa(pid), "cgroup")
}

// ReadCgroup reads /proc/PID/cgroup.
func ReadCgroup(pid int) ([]Cgroup, error) { return Proc.Cgroup(pid) }
