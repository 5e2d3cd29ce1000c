package lazy

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// kind is what a message is about.
type kind byte

// The messages between engine, guard and server. What the engine sends the guard
// keeps and passes on, to every server that it starts.
const (
	msgInit    kind = 'K' // pidfd of the container's init
	msgImage   kind = 'I' // see kept
	msgSpace   kind = 'S' // userfaultfd of an address space; its number is the message's
	msgSync    kind = 'Y' // answered when the server serves all that was sent
	msgGo      kind = 'G' // the container runs: fill in the background; answered
	msgAnswer  kind = 'A'
	msgHolder  kind = 'H' // from the server: pidfd of its holder
	msgForked  kind = 'F' // from the server: userfaultfd of a child; answered
	msgDropped kind = 'X' // from the server: an address space ended
	msgPlan    kind = 'P' // from the server: plan and journal were written anew; answered
	msgDone    kind = 'D' // from the server: every page is there
)

// message is one packet.
type message struct {
	kind  kind
	id    uint32
	pid   uint32     // of an address space, in the guard's pid namespace; 0: not known
	files []*os.File // the receiver's
}

// close closes what came with a message.
func (m *message) close() error {
	var all error
	for _, f := range m.files {
		all = errors.Join(all, f.Close())
	}
	m.files = nil
	return all
}

// link is one end of a packet socket. To send is safe for concurrent use.
type link struct{ f *os.File }

// newLink makes both ends.
func newLink() (ours, theirs link, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return link{}, link{}, fmt.Errorf("socketpair: %w", err)
	}
	return link{os.NewFile(uintptr(fds[0]), "lazy link")}, link{os.NewFile(uintptr(fds[1]), "lazy link")}, nil
}

func (l link) fd() int { return int(l.f.Fd()) }

func (l link) close() error { return l.f.Close() }

// MostStores is how many page stores a lazy restore works with: a message takes
// some 250 files (SCM_MAX_FD).
const MostStores = 240

const (
	packetSize = 9
	mostFiles  = firstStore + MostStores
)

func (l link) send(k kind, id uint32, files ...*os.File) error {
	return l.post(message{kind: k, id: id, files: files})
}

// post sends m, whose files stay the caller's.
func (l link) post(m message) error {
	files := m.files
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = int(f.Fd())
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	b := le.AppendUint32(le.AppendUint32([]byte{byte(m.kind)}, m.id), m.pid)
	for {
		err := unix.Sendmsg(l.fd(), b, rights, nil, unix.MSG_NOSIGNAL)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("send %q: %w", m.kind, err)
		}
		return nil
	}
}

// recv waits for a message. io.EOF says that the other end is closed.
func (l link) recv() (m message, err error) {
	b := make([]byte, packetSize)
	oob := make([]byte, unix.CmsgSpace(4*mostFiles))
	n, oobn := 0, 0
	for {
		n, oobn, _, _, err = unix.Recvmsg(l.fd(), b, oob, unix.MSG_CMSG_CLOEXEC)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	switch {
	case errors.Is(err, unix.ECONNRESET), err == nil && n == 0:
		return m, io.EOF
	case err != nil:
		return m, fmt.Errorf("receive: %w", err)
	}
	if m.files, err = rights(oob[:oobn]); err != nil {
		return m, err
	}
	if n != packetSize {
		return m, errors.Join(fmt.Errorf("receive: %d bytes", n), m.close())
	}
	m.kind, m.id, m.pid = kind(b[0]), le.Uint32(b[1:]), le.Uint32(b[5:])
	return m, nil
}

// rights are the files in a control message.
func rights(oob []byte) ([]*os.File, error) {
	list, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("receive: %w", err)
	}
	var files []*os.File
	for i := range list {
		fds, err := unix.ParseUnixRights(&list[i])
		if err != nil {
			return nil, fmt.Errorf("receive: %w", err)
		}
		for _, fd := range fds {
			files = append(files, quiet(fd, "lazy"))
		}
	}
	return files, nil
}

// quiet makes a file of a descriptor that the runtime's poller leaves alone: it
// would wake for every fault.
func quiet(fd int, name string) *os.File {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil || flags&unix.O_NONBLOCK == 0 {
		return os.NewFile(uintptr(fd), name)
	}
	_ = unix.SetNonblock(fd, false) //nolint:errcheck // then it is polled, and works as well
	f := os.NewFile(uintptr(fd), name)
	_ = unix.SetNonblock(fd, true) //nolint:errcheck // it was
	return f
}

// ask sends a message and waits for its answer.
func (l link) ask(k kind, id uint32, files ...*os.File) error {
	if err := l.send(k, id, files...); err != nil {
		return err
	}
	m, err := l.recv()
	if err != nil {
		return fmt.Errorf("answer to %q: %w", k, err)
	}
	if m.kind != msgAnswer {
		return errors.Join(fmt.Errorf("answer to %q is %q", k, m.kind), m.close())
	}
	return nil
}
