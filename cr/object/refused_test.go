package object

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"unsafe"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/errs"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// where is how messages name the helper's first descriptor, or the helper itself
// if it has none to offer.
func (h *helper) where() string {
	if len(h.fds) == 0 {
		return fmt.Sprintf("pid %d:", h.pid)
	}
	return fmt.Sprintf("pid %d fd %d:", h.pid, h.fds[0])
}

func refusedCases() map[string]made {
	one := func(f func() (int, error)) made {
		return func(string) ([]int, error) {
			fd, err := f()
			return []int{fd}, err
		}
	}
	return map[string]made{
		"packet":      one(func() (int, error) { return unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0) }),
		"raw":         one(func() (int, error) { return unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP) }),
		"ptmx":        one(func() (int, error) { return unix.Open("/dev/pts/ptmx", unix.O_RDWR|unix.O_NOCTTY, 0) }),
		"namespace":   one(func() (int, error) { return unix.Open("/proc/self/ns/net", unix.O_RDONLY, 0) }),
		"device":      one(func() (int, error) { return unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK, 0) }),
		"hugememfd":   one(func() (int, error) { return unix.MemfdCreate("huge", unix.MFD_HUGETLB) }),
		"inotify":     one(unix.InotifyInit),
		"netlink":     one(func() (int, error) { return unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, 0) }),
		"pidfd":       one(func() (int, error) { return unix.PidfdOpen(os.Getpid(), 0) }),
		"lease":       makeLease,
		"fifoalone":   makeFIFOAlone,
		"packetpipe":  makePacketPipe,
		"oneway":      makeOneWay,
		"hidden":      makeHidden,
		"threadtable": makeThreadTable,
	}
}

func makeLease(dir string) (_ []int, err error) {
	fd := open(&err, filepath.Join(dir, "leased"), unix.O_RDONLY|unix.O_CREAT)
	_, e := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_RDLCK)
	return []int{fd}, errors.Join(err, e)
}

func makeFIFOAlone(dir string) (_ []int, err error) {
	name := filepath.Join(dir, "fifo")
	e1 := unix.Mkfifo(name, 0o600)
	both := open(&err, name, unix.O_RDWR)
	w := open(&err, name, unix.O_WRONLY)
	_, e2 := unix.Write(w, []byte("alone"))
	return []int{w}, errors.Join(err, e1, e2, unix.Close(both))
}

func makePacketPipe(string) ([]int, error) {
	var p [2]int
	err := unix.Pipe2(p[:], unix.O_DIRECT)
	_, e := unix.Write(p[1], []byte("packet"))
	return p[:], errors.Join(err, e)
}

// makeOneWay dissolves one end of a pair, which leaves the other connected to it.
func makeOneWay(string) ([]int, error) {
	p, e1 := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	sa := [16]byte{} // AF_UNSPEC
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(p[1]), uintptr(unsafe.Pointer(&sa)), 16)
	return []int{p[0], p[1]}, errors.Join(e1, errnoErr(errno))
}

func makeHidden(dir string) (_ []int, err error) {
	name := filepath.Join(dir, "name")
	fd := open(&err, name, unix.O_RDONLY|unix.O_CREAT)
	return []int{fd}, errors.Join(err, unix.Link(name, name+"2"), unix.Unlink(name))
}

func makeThreadTable(string) ([]int, error) {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- unix.Unshare(unix.CLONE_FILES)
		select {}
	}()
	return nil, <-done
}

func errnoErr(e unix.Errno) error {
	if e == 0 {
		return nil
	}
	return e
}

// TestHostile: what an image asks for beyond what a capture writes is refused.
func TestHostile(t *testing.T) {
	needRoot(t)
	filter := &blob.SockOpt{Level: unix.SOL_SOCKET, Name: unix.SO_ATTACH_FILTER, Value: []byte{1, 2}}
	udp := func(o *blob.SockOpts) *blob.InetSocket {
		return &blob.InetSocket{Family: unix.AF_INET, Type: unix.SOCK_DGRAM, Protocol: unix.IPPROTO_UDP, Options: o}
	}
	port := udp(nil)
	port.Local, port.LocalPort = []byte{1, 2, 3, 4}, 1e5
	raw := uint32(unix.SOCK_RAW)
	stream := uint32(unix.SOCK_STREAM)
	for name, f := range map[string]struct {
		kind string
		body proto.Message
	}{
		"raw socket":     {"inet", &blob.InetSocket{Family: unix.AF_INET, Type: raw, Protocol: unix.IPPROTO_ICMP}},
		"netlink socket": {"inet", &blob.InetSocket{Family: unix.AF_NETLINK, Type: raw}},
		"option":         {"inet", udp(&blob.SockOpts{Opts: []*blob.SockOpt{filter}})},
		"port":           {"inet", port},
		"address":        {"inet", &blob.InetSocket{Family: 2, Type: 2, Protocol: 17, Local: make([]byte, 5), LocalPort: 1}},
		"device":         {"path", &blob.PathFile{Path: "/dev/kmsg", Mode: unix.S_IFCHR, Rdev: unix.Mkdev(1, 11)}},
		"relative path":  {"path", &blob.PathFile{Path: "etc/passwd", Mode: unix.S_IFREG}},
		"unix type":      {"unix", &blob.UnixSocket{Type: 99, Inode: 1}},
		"unix peer":      {"unix", &blob.UnixSocket{Type: stream, Inode: 1, Connected: true, Peer: 7}},
		"unix self":      {"unix", &blob.UnixSocket{Type: stream, Inode: 1, Connected: true, Peer: 1}},
		"pending":        {"unix", &blob.UnixSocket{Type: stream, Inode: 1, Connected: true, Pending: 1}},
		"queue":          {"unix", &blob.UnixSocket{Type: 2, Inode: 1, Queue: [][]byte{{1}}}},
		"ghost path":     {"ghost", &blob.GhostFile{Path: "tmp/x", Inode: 1}},
		"fifo path":      {"fifo", &blob.Pipe{Path: "x"}},
	} {
		body, err := proto.Marshal(f.body)
		ok(t, err)
		r, err := NewRestorer(RestoreEnv{
			InitPID: os.Getpid(), Enter: onThread, Files: []*blob.File{{Id: 1, Kind: f.kind, Rev: 1, Body: body}},
		})
		ok(t, err)
		if _, err := r.Open(t.Context(), 1); !errors.Is(err, errs.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
		ok(t, r.Close())
	}
	for name, f := range map[string]*blob.File{
		"kind":     {Id: 1, Kind: "what", Rev: 1},
		"revision": {Id: 1, Kind: "path", Rev: 99},
	} {
		if _, err := NewRestorer(RestoreEnv{Files: []*blob.File{f}}); !errors.Is(err, errs.ErrVersion) {
			t.Errorf("%s: %v", name, err)
		}
	}
	broken := []*blob.File{{Id: 1, Kind: "path", Rev: 1, Body: []byte{0xff}}}
	if _, err := NewRestorer(RestoreEnv{Files: broken}); !errors.Is(err, errs.ErrCorrupt) {
		t.Error(err)
	}
}
