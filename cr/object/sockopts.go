package object

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/cr/sys"

	"golang.org/x/sys/unix"
)

// option is one socket option that is worth keeping. The kernel takes back what
// getsockopt gave, byte for byte; the exceptions are in setOption.
type option struct{ level, name int }

// soBufLock tells whether SO_SNDBUF (bit 0) and SO_RCVBUF (bit 1) were set by the
// program (Linux 5.14); if not, the kernel goes on to tune them.
const soBufLock = 72

// commonOptions are those of every socket (socket(7)).
func commonOptions() []option {
	names := []int{
		unix.SO_REUSEADDR, unix.SO_REUSEPORT, unix.SO_KEEPALIVE, unix.SO_BROADCAST, unix.SO_OOBINLINE, unix.SO_LINGER,
		unix.SO_PRIORITY, unix.SO_RCVLOWAT, unix.SO_RCVTIMEO, unix.SO_SNDTIMEO, unix.SO_DONTROUTE, unix.SO_MARK,
		unix.SO_TIMESTAMP, unix.SO_TIMESTAMPNS, unix.SO_RXQ_OVFL, unix.SO_BINDTODEVICE, unix.SO_NO_CHECK,
		unix.SO_PASSCRED, unix.SO_PASSSEC, unix.SO_PASSPIDFD, unix.SO_PEEK_OFF,
	}
	return at(unix.SOL_SOCKET, names)
}

// at is a list of options of one level.
func at(level int, names []int) []option {
	var o []option
	for _, n := range names {
		o = append(o, option{level, n})
	}
	return o
}

// inetOptions are those of ip(7), ipv6(7), tcp(7) and udp(7).
func inetOptions(family, proto int) []option {
	o := at(unix.IPPROTO_IP, []int{
		unix.IP_TOS, unix.IP_TTL, unix.IP_RECVERR, unix.IP_PKTINFO, unix.IP_FREEBIND, unix.IP_TRANSPARENT,
		unix.IP_MTU_DISCOVER, unix.IP_MULTICAST_TTL, unix.IP_MULTICAST_LOOP, unix.IP_RECVTTL, unix.IP_RECVTOS,
		unix.IP_BIND_ADDRESS_NO_PORT,
	})
	if family == unix.AF_INET6 {
		o = at(unix.IPPROTO_IPV6, []int{
			unix.IPV6_V6ONLY, unix.IPV6_UNICAST_HOPS, unix.IPV6_MULTICAST_HOPS, unix.IPV6_MULTICAST_LOOP,
			unix.IPV6_MULTICAST_IF, unix.IPV6_RECVPKTINFO, unix.IPV6_RECVERR, unix.IPV6_TCLASS, unix.IPV6_RECVTCLASS,
			unix.IPV6_TRANSPARENT, unix.IPV6_FREEBIND, unix.IPV6_RECVHOPLIMIT, unix.IPV6_MTU_DISCOVER,
		})
	}
	switch proto {
	case unix.IPPROTO_TCP, unix.IPPROTO_MPTCP:
		o = append(o, at(unix.IPPROTO_TCP, []int{
			unix.TCP_NODELAY, unix.TCP_CORK, unix.TCP_KEEPIDLE, unix.TCP_KEEPINTVL, unix.TCP_KEEPCNT, unix.TCP_SYNCNT,
			unix.TCP_LINGER2, unix.TCP_DEFER_ACCEPT, unix.TCP_CONGESTION, unix.TCP_USER_TIMEOUT, unix.TCP_FASTOPEN,
			unix.TCP_NOTSENT_LOWAT, unix.TCP_SAVE_SYN,
		})...)
	case unix.IPPROTO_UDP:
		o = append(o, at(unix.IPPROTO_UDP, []int{unix.UDP_CORK, unix.UDP_SEGMENT, unix.UDP_GRO})...)
	}
	return o
}

// readOptions asks for all of them; those that the socket doesn't know are left
// out.
func readOptions(fd int, options []option) (*blob.SockOpts, error) {
	o := &blob.SockOpts{}
	if err := unfiltered(fd); err != nil {
		return nil, err
	}
	for _, x := range append(options, lockedBuffers(fd)...) {
		v, err := sys.Getsockopt(fd, x.level, x.name)
		if errors.Is(err, unix.ENOPROTOOPT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) ||
			errors.Is(err, unix.ENODEV) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("option %d of level %d: %w", x.name, x.level, err)
		}
		o.Opts = append(o.Opts, &blob.SockOpt{Level: int32(x.level), Name: int32(x.name), Value: v})
	}
	return o, nil
}

// unfiltered refuses sockets with a packet filter: the filter of a classic BPF
// program could be read, that of an eBPF program not at all.
func unfiltered(fd int) error {
	v, err := sys.Getsockopt(fd, unix.SOL_SOCKET, unix.SO_GET_FILTER)
	if errors.Is(err, unix.ENOPROTOOPT) || err == nil && len(v) == 0 {
		return nil
	}
	return unsupported("a socket with a packet filter (SO_ATTACH_FILTER)")
}

// lockedBuffers lists the buffer sizes that the program set itself.
func lockedBuffers(fd int) []option {
	locked, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, soBufLock)
	if err != nil {
		locked = 3
	}
	var o []option
	if locked&1 != 0 {
		o = append(o, sendBuffer())
	}
	if locked&2 != 0 {
		o = append(o, receiveBuffer())
	}
	return o
}

// setOptions makes the options of a new socket what they were. Only what differs
// is set: many options can be read that only some sockets let be set. An image
// may ask for what is known only, and for what needs a capability only if the
// container could have it.
func (r *Restorer) setOptions(fd int, o *blob.SockOpts, known []option) error {
	for _, x := range o.GetOpts() {
		is := option{int(x.Level), int(x.Name)}
		if !slices.Contains(known, is) && is != sendBuffer() && is != receiveBuffer() {
			return corrupt("option %d of level %d is none that is saved", x.Name, x.Level)
		}
		if err := r.setOption(fd, is, x.Value); err != nil {
			return fmt.Errorf("option %d of level %d: %w", x.Name, x.Level, err)
		}
	}
	return nil
}

// The two that are given in other units than they are read in.
func sendBuffer() option    { return option{unix.SOL_SOCKET, unix.SO_SNDBUF} }
func receiveBuffer() option { return option{unix.SOL_SOCKET, unix.SO_RCVBUF} }

// privileged says whether the value takes CAP_NET_ADMIN (socket(7), ip(7)).
func (x option) privileged(value []byte) bool {
	switch x {
	case option{unix.SOL_SOCKET, unix.SO_PRIORITY}:
		return len(value) != 4 || binary.LittleEndian.Uint32(value) > 6
	case option{unix.SOL_SOCKET, unix.SO_MARK},
		option{unix.IPPROTO_IP, unix.IP_TRANSPARENT}, option{unix.IPPROTO_IPV6, unix.IPV6_TRANSPARENT}:
		return true
	}
	return false
}

// setOption sets one option, if it is not what it should be already.
func (r *Restorer) setOption(fd int, x option, value []byte) error {
	if len(value) > 256 {
		return corrupt("a value of %d bytes", len(value))
	}
	now, err := sys.Getsockopt(fd, x.level, x.name)
	if err == nil && bytes.Equal(now, value) {
		return nil
	}
	if x == sendBuffer() || x == receiveBuffer() {
		return r.setBuffer(fd, x, value)
	}
	if x.privileged(value) && !r.netAdmin {
		return fmt.Errorf("%w: it needs CAP_NET_ADMIN, which the container can't have", errs.ErrHost)
	}
	err = unix.SetsockoptString(fd, x.level, x.name, string(value))
	if errors.Is(err, unix.ENOENT) && x == (option{unix.IPPROTO_TCP, unix.TCP_CONGESTION}) {
		return nil // mostly the old host's default: the new one's will do
	}
	return err
}

// setBuffer sets a buffer's size. The kernel doubles what it is given for its own
// bookkeeping (socket(7)), and keeps to the sysctl's limit unless forced.
func (r *Restorer) setBuffer(fd int, x option, value []byte) error {
	if len(value) != 4 {
		return corrupt("a buffer size of %d bytes", len(value))
	}
	half := binary.LittleEndian.AppendUint32(nil, binary.LittleEndian.Uint32(value)/2)
	name := x.name
	if r.netAdmin {
		name = unix.SO_SNDBUFFORCE
		if x == receiveBuffer() {
			name = unix.SO_RCVBUFFORCE
		}
	}
	return unix.SetsockoptString(fd, x.level, name, string(half))
}
