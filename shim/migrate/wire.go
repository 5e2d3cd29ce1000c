package migrate

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// Version is that of what the two sides say.
const Version = 1

// Bounds of what is taken from the other side. What a frame announces is not
// allocated before it has come.
const (
	frameHead   = 8
	mostData    = 1 << 20 // bytes of a frame of a stream
	mostMessage = 12 << 20
	mostText    = 4 << 10 // of an error that is passed on
)

// A connection whose other end says nothing to the kernel for that long is lost.
const (
	aliveIdle  = 4 * time.Second
	aliveEvery = 2 * time.Second
	aliveTries = 3
	unheard    = 10 * time.Second
)

// frame is how everything is sent:
//
//	0  1  kind
//	1  3  zero
//	4  4  number of bytes that follow, little endian
type frame byte

const (
	frameMessage frame = 'M' // JSON of a message
	frameData    frame = 'D' // a piece of a stream, 1 byte to 1 MiB
	frameEnd     frame = 'E' // the stream has ended; nothing follows
)

var (
	errProtocol = errors.New("not what the two sides of a migration say to each other")
	// errLost says that the other side, or the way there, is gone.
	errLost = errors.New("the connection is lost")
)

// kind is what a message is about.
type kind string

const (
	kindHello    kind = "hello"    // source: what is to come
	kindResolve  kind = "resolve"  // source, guard: what became of a migration
	kindAccepted kind = "accepted" // target
	kindImage    kind = "image"    // source: a stream follows
	kindRootfs   kind = "rootfs"   // source: a stream follows
	kindRound    kind = "round"    // source: a checkpoint is served
	kindFinal    kind = "final"    // source: the last one is; the container stands still
	kindDone     kind = "done"     // target: image, files, or a round are there
	kindReady    kind = "ready"    // target: the container is whole and waits for the word
	kindGo       kind = "go"       // source: the word
	kindRunning  kind = "running"  // target: it runs
	kindDropped  kind = "dropped"  // target: it does not and never will
	kindFilled   kind = "filled"   // target: all of its memory is there
	kindError    kind = "error"    // target: this is the end; nothing is left of it
)

// message is one thing that is said; each kind uses some of the fields.
type message struct {
	Kind        kind          `json:"kind"`
	Version     int           `json:"version,omitempty"`
	ID          string        `json:"id,omitempty"` // of the migration
	Description []byte        `json:"description,omitempty"`
	Lazy        bool          `json:"lazy,omitempty"`
	NeedImage   bool          `json:"needImage,omitempty"`
	Round       int           `json:"round,omitempty"`
	Addr        string        `json:"addr,omitempty"`  // where a checkpoint is served
	State       []byte        `json:"state,omitempty"` // its digest
	Took        time.Duration `json:"took,omitempty"`
	PID         int           `json:"pid,omitempty"`
	Error       string        `json:"error,omitempty"`
}

// wire is one side of a connection. It is for one goroutine that sends and one
// that receives.
type wire struct {
	c net.Conn
	r *bufio.Reader
}

func newWire(c net.Conn) *wire { return &wire{c, bufio.NewReaderSize(c, 64<<10)} }

func (w *wire) close() error { return w.c.Close() }

// until closes the connection when ctx ends, which ends every wait. The caller
// calls what it returns.
func (w *wire) until(ctx context.Context) (stop func() bool) {
	return context.AfterFunc(ctx, func() { _ = w.c.Close() }) //nolint:errcheck // the next read or write says it
}

// within bounds all that is sent and received from now on; 0: nothing does.
func (w *wire) within(d time.Duration) error {
	end := time.Time{}
	if d > 0 {
		end = time.Now().Add(d)
	}
	return w.c.SetDeadline(end)
}

// watchful sees to it that a connection that leads nowhere is found to be lost.
func watchful(c net.Conn) error {
	t, ok := c.(*net.TCPConn)
	if !ok {
		return nil
	}
	err := t.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: aliveIdle, Interval: aliveEvery, Count: aliveTries})
	if err != nil {
		return err
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return err
	}
	var e error
	err = raw.Control(func(fd uintptr) {
		e = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(unheard.Milliseconds()))
	})
	return errors.Join(err, e)
}

func (w *wire) frame(k frame, b []byte) error {
	head := binary.LittleEndian.AppendUint32([]byte{byte(k), 0, 0, 0}, uint32(len(b)))
	bufs := net.Buffers{head, b}
	if _, err := bufs.WriteTo(w.c); err != nil {
		return fmt.Errorf("%w: %w", errLost, err)
	}
	return nil
}

func (w *wire) send(m message) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if len(b) > mostMessage {
		return fmt.Errorf("message %q has %d bytes, and %d are allowed", m.Kind, len(b), mostMessage)
	}
	return w.frame(frameMessage, b)
}

// head reads the head of the next frame.
func (w *wire) head() (frame, int, error) {
	b := make([]byte, frameHead)
	if _, err := io.ReadFull(w.r, b); err != nil {
		return 0, 0, fmt.Errorf("%w: %w", errLost, err)
	}
	k, n := frame(b[0]), binary.LittleEndian.Uint32(b[4:])
	most := map[frame]uint32{frameMessage: mostMessage, frameData: mostData}[k]
	if b[1]|b[2]|b[3] != 0 || n > most || (n == 0) != (k == frameEnd) {
		return 0, 0, errProtocol
	}
	return k, int(n), nil
}

// recv reads a message. One that says error is an error.
func (w *wire) recv() (m message, err error) {
	k, n, err := w.head()
	if err != nil {
		return m, err
	}
	if k != frameMessage {
		return m, errProtocol
	}
	b, err := io.ReadAll(io.LimitReader(w.r, int64(n)))
	if err != nil || len(b) < n {
		return m, fmt.Errorf("%w: %w", errLost, errors.Join(err, io.ErrUnexpectedEOF))
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return m, fmt.Errorf("%w: %w", errProtocol, err)
	}
	if m.Kind == kindError {
		return m, &refusal{m.Error}
	}
	return m, nil
}

// want reads a message that must be of a kind.
func (w *wire) want(k kind) (message, error) {
	m, err := w.recv()
	if err == nil && m.Kind != k {
		err = fmt.Errorf("the other side says %q, want %q: %w", m.Kind, k, errProtocol)
	}
	return m, err
}

// ask sends a message and reads the answer, which must be of a kind.
func (w *wire) ask(m message, k kind) (message, error) {
	if err := w.send(m); err != nil {
		return message{}, w.why(err)
	}
	return w.want(k)
}

// why looks for what the other side said before it closed the connection, which
// says more than that it did.
func (w *wire) why(err error) error {
	if !errors.Is(err, errLost) || w.c.SetReadDeadline(time.Now().Add(time.Second)) != nil {
		return err
	}
	for {
		switch _, e := w.recv(); {
		case e == nil:
			continue
		case errors.As(e, new(*refusal)):
			return e
		}
		return err
	}
}

// refusal is what the other side calls the reason of its end.
type refusal struct{ text string }

func (r *refusal) Error() string { return "the other machine says: " + r.text }

// refuse says to the other side why this is the end.
func (w *wire) refuse(err error) error {
	text := err.Error()
	return w.send(message{Kind: kindError, Error: text[:min(len(text), mostText)]})
}

// stream sends what write writes, after a message that announces it.
func (w *wire) stream(m message, write func(io.Writer) error) error {
	if err := w.send(m); err != nil {
		return w.why(err)
	}
	b := bufio.NewWriterSize(pieces{w}, mostData)
	err := write(b)
	if err == nil {
		err = b.Flush()
	}
	if err == nil {
		err = w.frame(frameEnd, nil)
	}
	return w.why(err)
}

// pieces sends each write as a frame.
type pieces struct{ w *wire }

func (p pieces) Write(b []byte) (n int, err error) {
	for n < len(b) {
		part := b[n:min(n+mostData, len(b))]
		if err := p.w.frame(frameData, part); err != nil {
			return n, err
		}
		n += len(part)
	}
	return n, nil
}

// receive lets read read the stream that comes next, and what read has left of it.
func (w *wire) receive(read func(io.Reader) error) error {
	s := &incoming{w: w}
	if err := read(s); err != nil {
		if s.err != nil && !errors.Is(s.err, io.EOF) {
			return s.err
		}
		return err
	}
	_, err := io.Copy(io.Discard, s)
	return err
}

// incoming is a stream up to its end.
type incoming struct {
	w    *wire
	left int
	err  error // io.EOF: it has ended
}

func (s *incoming) Read(b []byte) (int, error) {
	if s.err == nil && s.left == 0 {
		var k frame
		if k, s.left, s.err = s.w.head(); s.err == nil {
			switch k {
			case frameData:
			case frameEnd:
				s.err = io.EOF
			default:
				s.err = errProtocol
			}
		}
	}
	if s.err != nil {
		return 0, s.err
	}
	n, err := s.w.r.Read(b[:min(len(b), s.left)])
	s.left -= n
	if err != nil {
		s.err = fmt.Errorf("%w: %w", errLost, err)
		return n, s.err
	}
	return n, nil
}
