package object

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// unixDiag is what the kernel tells of one unix socket (net/unix/diag.c).
type unixDiag struct {
	state    uint8 // a TCP state: 1 connected, 7 not, 10 listening
	ino      uint32
	name     []byte // sun_path; no NUL at the end of a path
	peered   bool   // it has, or had, a peer
	peer     uint32 // 0: the peer was closed, or not accepted yet
	pending  []uint32
	backlog  uint32 // of a listener
	shutdown uint8
}

// States of sockets: include/net/tcp_states.h.
const (
	stateEstablished = 1
	stateClose       = 7
	stateListen      = 10
)

// sock_diag's numbers: include/uapi/linux/{sock_diag,unix_diag}.h.
const (
	sockDiagByFamily = 20
	unixShow         = 1<<0 | 1<<2 | 1<<3 | 1<<4 // NAME, PEER, ICONS, RQLEN

	unixAttrName     = 0
	unixAttrPeer     = 2
	unixAttrIcons    = 3
	unixAttrRQLen    = 4
	unixAttrShutdown = 6

	nlHeader    = 16
	unixMessage = 16
)

var errDiag = errors.New("sock_diag answer can't be read")

// unixSockets lists all unix sockets of the container's network namespace.
func (c *Capture) unixSockets(ctx context.Context) (map[uint32]*unixDiag, error) {
	var socks map[uint32]*unixDiag
	err := c.env.Enter(ctx, c.env.InitPID, func() (err error) {
		socks, err = dumpUnix()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list unix sockets: %w", err)
	}
	return socks, nil
}

// dumpUnix asks in the network namespace of the calling thread.
func dumpUnix() (map[uint32]*unixDiag, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	le := binary.LittleEndian
	req := le.AppendUint32(nil, nlHeader+24)
	req = le.AppendUint16(req, sockDiagByFamily)
	req = le.AppendUint16(req, unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	req = append(req, make([]byte, 8)...)
	req = append(req, unix.AF_UNIX, 0, 0, 0)
	req = le.AppendUint32(req, 1<<32-1) // all states
	req = le.AppendUint32(req, 0)
	req = le.AppendUint32(req, unixShow)
	req = append(req, make([]byte, 8)...)
	if err := unix.Sendto(fd, req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, err
	}
	socks := map[uint32]*unixDiag{}
	buf := make([]byte, 1<<16)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		done, err := parseDump(buf[:n], socks)
		if done || err != nil {
			return socks, err
		}
	}
}

// parseDump reads one datagram of netlink messages; done after the last one.
func parseDump(b []byte, socks map[uint32]*unixDiag) (done bool, err error) {
	le := binary.LittleEndian
	for len(b) >= nlHeader {
		n, kind := int(le.Uint32(b)), le.Uint16(b[4:])
		if n < nlHeader || n > len(b) {
			return false, errDiag
		}
		body := b[nlHeader:n]
		switch kind {
		case unix.NLMSG_DONE:
			return true, nil
		case unix.NLMSG_ERROR:
			if len(body) < 4 {
				return false, errDiag
			}
			return false, unix.Errno(-int32(le.Uint32(body)))
		case sockDiagByFamily:
			s, err := parseUnix(body)
			if err != nil {
				return false, err
			}
			socks[s.ino] = s
		}
		b = b[min(align4(n), len(b)):]
	}
	return false, nil
}

// align4 is NLMSG_ALIGN and NLA_ALIGN.
func align4(n int) int { return (n + 3) &^ 3 }

// parseUnix reads struct unix_diag_msg and its attributes.
func parseUnix(b []byte) (*unixDiag, error) {
	if len(b) < unixMessage {
		return nil, errDiag
	}
	le := binary.LittleEndian
	s := &unixDiag{state: b[2], ino: le.Uint32(b[4:])}
	for b = b[unixMessage:]; len(b) >= 4; {
		n, kind := int(le.Uint16(b)), le.Uint16(b[2:])
		if n < 4 || n > len(b) {
			return nil, errDiag
		}
		if !s.attribute(kind, b[4:n]) {
			return nil, errDiag
		}
		b = b[min(align4(n), len(b)):]
	}
	return s, nil
}

// attribute reads one attribute; ones that are not known are skipped, as netlink(7)
// asks of every reader.
func (s *unixDiag) attribute(kind uint16, v []byte) bool {
	le := binary.LittleEndian
	switch kind {
	case unixAttrName:
		s.name = sunPath(v)
	case unixAttrPeer:
		if len(v) < 4 {
			return false
		}
		s.peered, s.peer = true, le.Uint32(v)
	case unixAttrIcons:
		for ; len(v) >= 4; v = v[4:] {
			s.pending = append(s.pending, le.Uint32(v))
		}
	case unixAttrRQLen:
		if len(v) < 8 {
			return false
		}
		s.backlog = le.Uint32(v[4:])
	case unixAttrShutdown:
		if len(v) < 1 {
			return false
		}
		s.shutdown = v[0]
	}
	return true
}

// sunPath copies a name, without the NUL at the end of a path.
func sunPath(v []byte) []byte {
	if len(v) == 0 {
		return nil
	}
	name := append([]byte(nil), v...)
	if name[0] != 0 && name[len(name)-1] == 0 {
		name = name[:len(name)-1]
	}
	return name
}
