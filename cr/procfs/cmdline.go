package procfs

import (
	"bytes"
	"io"
	"strconv"
)

// cmdlineMost bounds what is read of a command line: it is for people.
const cmdlineMost = 64 << 10

// ParseCmdline parses /proc/PID/cmdline: the arguments, or whatever the program
// has written over them. No more than 64 KiB are read.
func ParseCmdline(r io.Reader) ([]string, error) {
	b, err := io.ReadAll(io.LimitReader(r, cmdlineMost))
	if err != nil || len(b) == 0 {
		return nil, err
	}
	var out []string
	for arg := range bytes.SplitSeq(bytes.TrimSuffix(b, []byte{0}), []byte{0}) {
		out = append(out, string(arg))
	}
	return out, nil
}

// Cmdline reads the arguments of a process; a zombie has none.
func (root FS) Cmdline(pid int) ([]string, error) {
	return read(root, ParseCmdline, strconv.Itoa(pid), "cmdline")
}

// ReadCmdline reads /proc/PID/cmdline.
func ReadCmdline(pid int) ([]string, error) { return Proc.Cmdline(pid) }
