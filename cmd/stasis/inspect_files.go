package main

import (
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"time"
	"unicode"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/object"
)

func isPrint(r rune) bool { return unicode.IsPrint(r) }

// files prints what every process has open.
func (v *view) files(w io.Writer) {
	fmt.Fprintln(w, "PID\tFD\tMODE\tKIND\tFILE")
	kinds := bodies()
	owner := map[uint32]int32{}
	v.walk(func(p *blob.Process, _ int) {
		row := func(fd string, id uint32) {
			if f := v.filesBy[id]; f != nil {
				fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\n", p.GetPid(), fd, mode(f.GetFlags()), printable(f.GetKind()),
					printable(describe(f, decode(kinds, f))))
			}
		}
		row("cwd", p.GetFs().GetCwd())
		row("root", p.GetFs().GetRoot())
		row("exe", v.mms[p.GetMm()].GetExe())
		table := p.GetFdTable()
		if first, ok := owner[table]; ok {
			fmt.Fprintf(w, "%d\tall\t\t\tshared with pid %d\n", p.GetPid(), first)
			return
		}
		if table != 0 {
			owner[table] = p.GetPid()
		}
		for _, fd := range v.tables[table].GetFds() {
			row(strconv.Itoa(int(fd.GetFd())), fd.GetFile())
		}
	})
}

// bodies makes an empty body for each kind's tag.
func bodies() map[string]func() proto.Message {
	m := make(map[string]func() proto.Message)
	for _, k := range object.Kinds() {
		m[k.Tag] = k.New
	}
	return m
}

// decode reads the body of f; nil if this engine does not know the kind.
func decode(kinds map[string]func() proto.Message, f *blob.File) proto.Message {
	fresh := kinds[f.GetKind()]
	if fresh == nil {
		return nil
	}
	m := fresh()
	if err := proto.Unmarshal(f.GetBody(), m); err != nil {
		return nil
	}
	return m
}

// mode is how a description was opened, in letters.
func mode(flags uint32) string {
	s := map[uint32]string{unix.O_RDONLY: "r", unix.O_WRONLY: "w", unix.O_RDWR: "rw"}[flags&unix.O_ACCMODE]
	if flags&unix.O_PATH != 0 {
		return "path"
	}
	if flags&unix.O_APPEND != 0 {
		s += "a"
	}
	if flags&unix.O_NONBLOCK != 0 {
		s += "n"
	}
	return s
}

// describe says in a few words what a file is.
func describe(f *blob.File, body proto.Message) string {
	switch b := body.(type) {
	case *blob.PathFile:
		return at(b.GetPath(), f.GetPos())
	case *blob.GhostFile:
		return at(b.GetPath()+" (deleted)", f.GetPos())
	case *blob.MemFD:
		return at("memfd:"+b.GetName(), f.GetPos())
	case *blob.External:
		return fmt.Sprintf("stdio %d of the caller, was %s", b.GetIndex(), f.GetName())
	case *blob.Pipe:
		return describePipe(b)
	case *blob.EventFD:
		return fmt.Sprintf("eventfd, count %d", b.GetCount())
	case *blob.SignalFD:
		return fmt.Sprintf("signalfd, mask %#x", b.GetMask())
	case *blob.TimerFD:
		return describeTimer(b)
	case *blob.EPoll:
		return "epoll of " + count(len(b.GetEntries()), "descriptor")
	case *blob.UnixSocket:
		return describeUnix(b)
	case *blob.InetSocket:
		return describeInet(b)
	}
	return f.GetName()
}

func at(name string, pos uint64) string {
	if pos == 0 {
		return name
	}
	return fmt.Sprintf("%s at %d", name, pos)
}

func describePipe(b *blob.Pipe) string {
	name := fmt.Sprintf("pipe %d", b.GetInode())
	if b.GetPath() != "" {
		name = b.GetPath()
	}
	if n := len(b.GetData()); n > 0 {
		name += fmt.Sprintf(", %s waiting", size(uint64(n)))
	}
	return name
}

func describeTimer(b *blob.TimerFD) string {
	if b.GetValueNs() == 0 {
		return "timerfd, disarmed"
	}
	return fmt.Sprintf("timerfd, due in %s", time.Duration(b.GetValueNs()))
}

func describeUnix(b *blob.UnixSocket) string {
	s := fmt.Sprintf("unix %s %d", sockType(b.GetType()), b.GetInode())
	if name := string(b.GetName()); name != "" {
		if name[0] == 0 {
			name = "@" + name[1:]
		}
		s += " " + name
	}
	switch {
	case b.GetListening():
		s += ", listening"
	case b.GetPeer() != 0:
		s += fmt.Sprintf(", peer %d", b.GetPeer())
	}
	var waiting uint64
	for _, m := range b.GetQueue() {
		waiting += uint64(len(m))
	}
	if waiting > 0 {
		s += fmt.Sprintf(", %s waiting", size(waiting))
	}
	return s
}

func describeInet(b *blob.InetSocket) string {
	protocol := map[uint32]string{unix.SOCK_STREAM: "tcp", unix.SOCK_DGRAM: "udp"}[b.GetType()]
	if protocol == "" {
		protocol = sockType(b.GetType())
	}
	if b.GetFamily() == unix.AF_INET6 {
		protocol += "6"
	}
	s := protocol + " " + address(b.GetLocal(), b.GetLocalPort())
	switch {
	case b.GetListening():
		s += ", listening"
	case len(b.GetRemote()) > 0:
		s += " to " + address(b.GetRemote(), b.GetRemotePort())
	}
	return s
}

func sockType(t uint32) string {
	names := map[uint32]string{
		unix.SOCK_STREAM: "stream", unix.SOCK_DGRAM: "dgram",
		unix.SOCK_SEQPACKET: "seqpacket", unix.SOCK_RAW: "raw",
	}
	if n := names[t]; n != "" {
		return n
	}
	return fmt.Sprintf("type %d", t)
}

func address(b []byte, port uint32) string {
	a, ok := netip.AddrFromSlice(b)
	if !ok {
		return "not bound"
	}
	return netip.AddrPortFrom(a, uint16(port)).String()
}
