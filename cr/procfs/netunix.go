package procfs

import (
	"bytes"
	"io"
	"strconv"
)

// UnixSocket is one line of /proc/PID/net/unix (net/unix/af_unix.c,
// unix_seq_show).
type UnixSocket struct {
	RefCount  uint32
	Listening bool   // SO_ACCEPTCON
	Type      uint16 // SOCK_STREAM 1, SOCK_DGRAM 2, SOCK_SEQPACKET 5
	State     uint8  // SS_UNCONNECTED 1, SS_CONNECTING 2, SS_CONNECTED 3, ...
	Inode     uint64
	// Path is the address; "@" first: an abstract one, whose NULs are all shown
	// as "@". Newlines are not escaped by the kernel, so that a program can make
	// lines up: use this list to find one's own sockets, not to trust it.
	Path string
}

const unixAccepting = 0x10000 // __SO_ACCEPTCON

// ParseUnix parses /proc/PID/net/unix.
func ParseUnix(r io.Reader) ([]UnixSocket, error) {
	var out []UnixSocket
	head := true
	err := eachLine(r, func(line []byte) bool {
		if head {
			head = false
			return bytes.HasPrefix(line, []byte("Num "))
		}
		var s UnixSocket
		if s.parse(line) {
			out = append(out, s)
			return true
		}
		// The rest of a path with a newline in it. Such a path is short
		// (sun_path), so joining costs nothing.
		if len(out) == 0 || out[len(out)-1].Path == "" || len(out[len(out)-1].Path) > unixPathMost {
			return false
		}
		out[len(out)-1].Path += "\n" + string(line)
		return true
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// unixPathMost is the length of sun_path.
const unixPathMost = 108

// parse takes "00000000d7d1614a: 00000003 00000000 00000000 0001 03  1158 /path".
func (s *UnixSocket) parse(line []byte) bool {
	num, rest := cutWord(line)
	refs, rest := cutWord(rest)
	_, rest = cutWord(rest) // protocol, always 0
	flags, rest := cutWord(rest)
	kind, rest := cutWord(rest)
	state, rest := cutWord(rest)
	inode, path := cutWord(rest)
	var f uint32
	if !bytes.HasSuffix(num, []byte(":")) || !number(refs, 16, &s.RefCount) || !number(flags, 16, &f) {
		return false
	}
	s.Listening = f&unixAccepting != 0
	s.Path = string(path)
	return number(kind, 16, &s.Type) && number(state, 16, &s.State) && number(inode, 10, &s.Inode)
}

// Unix reads the unix sockets of the network namespace that a process is in.
func (root FS) Unix(pid int) ([]UnixSocket, error) {
	return read(root, ParseUnix, strconv.Itoa(pid), "net", "unix")
}

// ReadNetUnix reads /proc/PID/net/unix.
func ReadNetUnix(pid int) ([]UnixSocket, error) { return Proc.Unix(pid) }
