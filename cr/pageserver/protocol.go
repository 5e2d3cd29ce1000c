package pageserver

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/stasis-cr/stasis/cr/errs"
)

// Version is that of the protocol.
const Version = 1

const (
	magic       = "\x89STSPSV\n"
	digestSize  = 32
	welcomeSize = 56
	helloSize   = 16
	requestSize = 20
	answerSize  = 8
	mostRead    = 1 << 20 // bytes of one answer
	mostText    = 256     // of an answer that is an error
	mostState   = 1 << 29 // bytes of state.img, as package blob has it
)

var (
	le           = binary.LittleEndian
	errProtocol  = errors.New("page server: not what the protocol allows")
	errNotServed = errors.New("no such bytes in this checkpoint")
)

// kind is what a request reads of.
type kind byte

const (
	kindState   kind = 'S' // state.img; the index is 0
	kindArchive kind = 'A' // an archive, by its place in the NSPC record
	kindStore   kind = 'P' // a page store, as chunks number them
)

// welcome is what the server says first:
//
//	 0  8  magic: 89 53 54 53 50 53 56 0a
//	 8  2  version, the highest that it speaks
//	10  6  zero
//	16  8  size of state.img
//	24 32  sha256 of state.img
type welcome struct {
	version uint16
	size    uint64
	digest  [digestSize]byte
}

func (w *welcome) encode() []byte {
	b := append(le.AppendUint16([]byte(magic), w.version), make([]byte, 6)...)
	return append(le.AppendUint64(b, w.size), w.digest[:]...)
}

// parseWelcome reads one of any version: the front is the same for ever.
func parseWelcome(b []byte) (*welcome, error) {
	if len(b) != welcomeSize || string(b[:8]) != magic {
		return nil, fmt.Errorf("no page server: %w", errProtocol)
	}
	w := &welcome{version: le.Uint16(b[8:]), size: le.Uint64(b[16:])}
	copy(w.digest[:], b[24:])
	switch {
	case w.version != Version:
		return nil, fmt.Errorf("the page server speaks version %d, not %d: %w", w.version, Version, errs.ErrVersion)
	case !zero(b[10:16]) || w.size == 0 || w.size > mostState:
		return nil, errProtocol
	}
	return w, nil
}

// hello is what the client answers:
//
//	 0  8  magic
//	 8  2  version that is spoken from here on
//	10  6  zero
func hello() []byte { return append(le.AppendUint16([]byte(magic), Version), make([]byte, 6)...) }

func checkHello(b []byte) error {
	switch {
	case len(b) != helloSize || string(b[:8]) != magic || !zero(b[10:]):
		return errProtocol
	case le.Uint16(b[8:]) != Version:
		return fmt.Errorf("version %d: %w", le.Uint16(b[8:]), errs.ErrVersion)
	}
	return nil
}

// request asks for bytes:
//
//	 0  1  kind
//	 1  3  zero
//	 4  4  index
//	 8  8  offset
//	16  4  length, 1 to 1 MiB
type request struct {
	kind   kind
	index  uint32
	offset uint64
	length uint32
}

func (q request) encode() []byte {
	b := le.AppendUint32([]byte{byte(q.kind), 0, 0, 0}, q.index)
	return le.AppendUint32(le.AppendUint64(b, q.offset), q.length)
}

func parseRequest(b []byte) (request, error) {
	if len(b) != requestSize || !zero(b[1:4]) {
		return request{}, errProtocol
	}
	q := request{kind(b[0]), le.Uint32(b[4:]), le.Uint64(b[8:]), le.Uint32(b[16:])}
	switch q.kind {
	case kindState, kindArchive, kindStore:
	default:
		return request{}, errProtocol
	}
	if q.length == 0 || q.length > mostRead {
		return request{}, errProtocol
	}
	return q, nil
}

func (q request) String() string {
	what := map[kind]string{kindState: "state", kindArchive: "archive", kindStore: "page store"}[q.kind]
	return fmt.Sprintf("%d bytes at %d of %s %d", q.length, q.offset, what, q.index)
}

// status is how an answer begins:
//
//	0  1  status
//	1  3  zero
//	4  4  number of bytes that follow
type status byte

const (
	statusData    status = 0 // as many bytes as were asked for follow
	statusRefused status = 1 // the image has no such bytes; a reason follows, and the end
	statusFailed  status = 2 // the server can't read them; a reason follows
)

func appendAnswer(b []byte, s status, n int) []byte {
	return le.AppendUint32(append(b, byte(s), 0, 0, 0), uint32(n))
}

// readAnswer reads the answer to a request for len(b) bytes into b. One that says
// no is a final error.
func readAnswer(r io.Reader, b []byte) error {
	head := make([]byte, answerSize)
	if _, err := io.ReadFull(r, head); err != nil {
		return err
	}
	s, n := status(head[0]), le.Uint32(head[4:])
	if s == statusData && zero(head[1:4]) && uint64(n) == uint64(len(b)) {
		_, err := io.ReadFull(r, b)
		return err
	}
	if s != statusRefused && s != statusFailed || !zero(head[1:4]) || n > mostText {
		return &finalError{errProtocol}
	}
	text := make([]byte, n)
	if _, err := io.ReadFull(r, text); err != nil {
		return err
	}
	return &finalError{fmt.Errorf("the page server says: %q", text)}
}

// finalError is one that another attempt would meet again.
type finalError struct{ err error }

func (e *finalError) Error() string { return e.err.Error() }
func (e *finalError) Unwrap() error { return e.err }

func zero(b []byte) bool {
	for _, x := range b {
		if x != 0 {
			return false
		}
	}
	return true
}
