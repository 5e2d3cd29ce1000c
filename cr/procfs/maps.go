package procfs

import (
	"bytes"
	"io"
	"strconv"
)

// Bits of Mapping.Prot, as mmap(2) takes them.
const (
	ProtRead  = 1
	ProtWrite = 2
	ProtExec  = 4
)

// Mapping is one line of /proc/PID/maps (fs/proc/task_mmu.c, show_map_vma).
type Mapping struct {
	Start, End uint64 // addresses; end exclusive
	Prot       uint32 // PROT_*
	Shared     bool   // MAP_SHARED
	Offset     uint64 // in the file, bytes
	Major      uint32 // device of the file; 0:0 without one
	Minor      uint32
	Inode      uint64
	// Name is the rest of the line: a path, "[heap]", "[anon:text]", nothing.
	// The kernel writes newlines of a path as \012 and nothing else, so a path
	// that holds these four characters looks the same: /proc/PID/map_files
	// knows better. " (deleted)" ends the name of an unlinked file.
	Name string
}

// ParseMaps parses /proc/PID/maps.
func ParseMaps(r io.Reader) ([]Mapping, error) {
	var out []Mapping
	var last string
	err := eachLine(r, func(line []byte) bool {
		var m Mapping
		ok := m.parse(line, &last)
		out = append(out, m)
		return ok
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// parse reads one line. last is the name of the line before: neighbours are
// mostly parts of one file, and then share the string.
func (m *Mapping) parse(line []byte, last *string) bool {
	span, rest := cutWord(line)
	perms, rest := cutWord(rest)
	offset, rest := cutWord(rest)
	dev, rest := cutWord(rest)
	inode, rest := cutWord(rest)
	start, end, ok := bytes.Cut(span, []byte("-"))
	major, minor, ok2 := bytes.Cut(dev, []byte(":"))
	if !ok || !ok2 || !m.permissions(perms) {
		return false
	}
	if name := bytes.TrimLeft(rest, " "); string(name) != *last {
		*last = string(name)
	}
	m.Name = *last
	return number(start, 16, &m.Start) && number(end, 16, &m.End) && m.Start < m.End &&
		number(offset, 16, &m.Offset) && number(major, 16, &m.Major) && number(minor, 16, &m.Minor) &&
		number(inode, 10, &m.Inode)
}

// permissions takes "rwxp".
func (m *Mapping) permissions(b []byte) bool {
	if len(b) != 4 {
		return false
	}
	for i, letter := range []byte("rwx") {
		switch b[i] {
		case letter:
			m.Prot |= 1 << i
		case '-':
		default:
			return false
		}
	}
	m.Shared = b[3] == 's'
	return m.Shared || b[3] == 'p'
}

// Maps reads the mappings of a process, ascending.
func (root FS) Maps(pid int) ([]Mapping, error) {
	return read(root, ParseMaps, strconv.Itoa(pid), "maps")
}

// ReadMaps reads /proc/PID/maps. Unless the process is stopped, the list may mix
// states of different moments.
func ReadMaps(pid int) ([]Mapping, error) { return Proc.Maps(pid) }
