package procfs

import (
	"bytes"
	"encoding/binary"
	encoding "encoding/hex"
	"io"
	"net/netip"
	"strconv"
)

// States of a TCP socket (net/tcp_states.h). UDP uses two of them: established
// for connected sockets, close for others.
const (
	TCPEstablished = 1
	TCPSynSent     = 2
	TCPSynRecv     = 3
	TCPFinWait1    = 4
	TCPFinWait2    = 5
	TCPTimeWait    = 6
	TCPClose       = 7
	TCPCloseWait   = 8
	TCPLastAck     = 9
	TCPListen      = 10
	TCPClosing     = 11
	TCPNewSynRecv  = 12
)

// InetSocket is one line of /proc/PID/net/tcp, tcp6, udp or udp6.
type InetSocket struct {
	Local, Remote netip.AddrPort // a v6 address is never unmapped
	State         uint8          // TCP*
	TxQueue       uint32         // bytes; not of a listening socket
	RxQueue       uint32         // bytes; of a listening socket, connections that wait
	UID           uint32
	Inode         uint64 // 0: it has no descriptor, as in TIME_WAIT
}

// ParseInet parses /proc/PID/net/tcp, tcp6, udp or udp6 of a little-endian
// machine.
func ParseInet(r io.Reader) ([]InetSocket, error) {
	var out []InetSocket
	head := true
	err := eachLine(r, func(line []byte) bool {
		if head {
			head = false
			return bytes.Contains(line, []byte("local_address"))
		}
		var s InetSocket
		ok := s.parse(bytes.Fields(line))
		out = append(out, s)
		return ok
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// parse takes "0: 0100007F:07E8 00000000:0000 0A 00000000:00000000 00:00000000
// 00000000 0 0 539 ...": what is behind the inode differs from file to file.
func (s *InetSocket) parse(w [][]byte) bool {
	if len(w) < 10 || !bytes.HasSuffix(w[0], []byte(":")) {
		return false
	}
	tx, rx, ok := bytes.Cut(w[4], []byte(":"))
	return ok && inetAddress(w[1], &s.Local) && inetAddress(w[2], &s.Remote) && number(w[3], 16, &s.State) &&
		number(tx, 16, &s.TxQueue) && number(rx, 16, &s.RxQueue) && number(w[7], 10, &s.UID) && number(w[9], 10, &s.Inode)
}

// inetAddress takes an address as the kernel prints it: each word of 32 bits as
// a number in the machine's order, though it is in network order.
func inetAddress(b []byte, to *netip.AddrPort) bool {
	host, port, ok := bytes.Cut(b, []byte(":"))
	var p uint16
	var raw [16]byte
	if !ok || len(port) != 4 || !number(port, 16, &p) || (len(host) != 8 && len(host) != 32) {
		return false
	}
	n, err := encoding.Decode(raw[:], host)
	if err != nil {
		return false
	}
	for i := 0; i < n; i += 4 {
		binary.LittleEndian.PutUint32(raw[i:], binary.BigEndian.Uint32(raw[i:]))
	}
	addr, _ := netip.AddrFromSlice(raw[:n])
	*to = netip.AddrPortFrom(addr, p)
	return true
}

// Inet reads the sockets of the network namespace that a process is in. file is
// tcp, tcp6, udp or udp6; a kernel without IPv6 has no *6 (fs.ErrNotExist).
func (root FS) Inet(pid int, file string) ([]InetSocket, error) {
	return read(root, ParseInet, strconv.Itoa(pid), "net", file)
}

// ReadNetTCP reads /proc/PID/net/tcp.
func ReadNetTCP(pid int) ([]InetSocket, error) { return Proc.Inet(pid, "tcp") }

// ReadNetTCP6 reads /proc/PID/net/tcp6.
func ReadNetTCP6(pid int) ([]InetSocket, error) { return Proc.Inet(pid, "tcp6") }

// ReadNetUDP reads /proc/PID/net/udp.
func ReadNetUDP(pid int) ([]InetSocket, error) { return Proc.Inet(pid, "udp") }

// ReadNetUDP6 reads /proc/PID/net/udp6.
func ReadNetUDP6(pid int) ([]InetSocket, error) { return Proc.Inet(pid, "udp6") }
