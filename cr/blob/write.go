package blob

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"google.golang.org/protobuf/proto"
)

// Write writes img to w as state.img. Equal images give equal bytes. It does not
// validate: an image that [Image.Validate] refuses is written all the same.
func Write(w io.Writer, img *Image) error {
	out := &writer{w: bufio.NewWriter(w)}
	if _, err := out.w.Write(appendHeader(nil)); err != nil {
		return err
	}
	for _, p := range parts() {
		for i, m := range p.records(img) {
			if err := out.record(p, m); err != nil {
				return fmt.Errorf("section %s %d: %w", p.tag, i, err)
			}
		}
	}
	if err := out.end(); err != nil {
		return err
	}
	return out.w.Flush()
}

// writer counts and sums up the sections that it writes.
type writer struct {
	w   *bufio.Writer
	sum end
	buf []byte
}

func (w *writer) record(p part, m proto.Message) (err error) {
	if !m.ProtoReflect().IsValid() {
		return errors.New("no record")
	}
	w.buf, err = proto.MarshalOptions{Deterministic: true}.MarshalAppend(w.buf[:0], m)
	if err != nil {
		return err
	}
	if len(w.buf) > maxBody {
		return fmt.Errorf("record of %d bytes, more than %d", len(w.buf), maxBody)
	}
	h := w.header(section{tag: p.tag, rev: p.rev, flags: mustUnderstand}, w.buf)
	w.sum.add(h)
	return w.bytes(h, w.buf)
}

func (w *writer) end() error {
	b := w.sum.append(nil)
	return w.bytes(w.header(section{tag: endTag, rev: 1, flags: mustUnderstand}, b), b)
}

func (w *writer) header(s section, body []byte) []byte {
	s.length, s.crc = uint64(len(body)), crc32c(body)
	return s.append(nil)
}

func (w *writer) bytes(parts ...[]byte) error {
	for _, b := range parts {
		if _, err := w.w.Write(b); err != nil {
			return err
		}
	}
	return nil
}
