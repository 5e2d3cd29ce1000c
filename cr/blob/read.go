package blob

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/stasis-cr/stasis/cr/errs"
)

// Read reads a state.img of size bytes from r, all of it. What it returns holds
// what was written, byte for byte, but may still be nonsense: see
// [Image.Validate]. Errors wrap errs.ErrNotImage, errs.ErrVersion or
// errs.ErrCorrupt, or are r's own.
func Read(r io.Reader, size int64) (*Image, error) {
	if size > maxState {
		return nil, fmt.Errorf("%d bytes of state, more than %d: %w", size, int64(maxState), errs.ErrCorrupt)
	}
	in := &reader{r: r, left: size, parts: parts(), img: &Image{}}
	if err := in.header(); err != nil {
		return nil, err
	}
	for {
		last, err := in.section()
		if err != nil {
			return nil, err
		}
		if !last {
			continue
		}
		if err := in.nothingLeft(); err != nil {
			return nil, err
		}
		return in.img, nil
	}
}

// reader is a file on its way in.
type reader struct {
	r     io.Reader
	left  int64 // bytes that are still to come
	buf   bytes.Buffer
	parts []part
	at    int  // the part that came last
	has   bool // and has a record
	sum   end
	img   *Image
}

// next reads n bytes, valid until the next call. Memory grows with the bytes
// that come, not with those that were promised.
func (r *reader) next(n uint64) ([]byte, error) {
	if r.left < 0 || n > uint64(r.left) {
		return nil, fmt.Errorf("%d bytes of %d are missing: %w", n-uint64(max(r.left, 0)), n, errs.ErrCorrupt)
	}
	r.left -= int64(n)
	r.buf.Reset()
	if _, err := io.CopyN(&r.buf, r.r, int64(n)); errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%d bytes of %d are missing: %w", n-uint64(r.buf.Len()), n, errs.ErrCorrupt)
	} else if err != nil {
		return nil, err
	}
	return r.buf.Bytes(), nil
}

func (r *reader) header() error {
	b, err := r.next(uint64(min(headerSize, max(r.left, 0))))
	if err != nil {
		return err
	}
	return checkHeader(b)
}

// section reads one section, and tells whether it was the last.
func (r *reader) section() (last bool, err error) {
	b, err := r.next(sectionHeaderSize)
	if err != nil {
		return false, fmt.Errorf("section header: %w", err)
	}
	s, err := parseSection(b)
	if err != nil {
		return false, err
	}
	if s.tag == endTag {
		return true, r.end(s)
	}
	r.sum.add(b)
	if err := r.record(s); err != nil {
		return false, fmt.Errorf("section %q: %w", s.tag, err)
	}
	return false, nil
}

// body reads a section's body and checks it.
func (r *reader) body(s section) ([]byte, error) {
	if s.length > maxBody {
		return nil, fmt.Errorf("body of %d bytes: %w", s.length, errs.ErrCorrupt)
	}
	b, err := r.next(s.length)
	if err != nil {
		return nil, err
	}
	if got := crc32c(b); got != s.crc {
		return nil, fmt.Errorf("checksum %08x, want %08x: %w", got, s.crc, errs.ErrCorrupt)
	}
	return b, nil
}

// record reads a section into the image.
func (r *reader) record(s section) error {
	p := r.find(s.tag)
	if p < 0 && s.flags&mustUnderstand != 0 {
		return fmt.Errorf("unknown: %w", errs.ErrVersion)
	}
	b, err := r.body(s)
	if err != nil || p < 0 {
		return err
	}
	if s.flags&mustUnderstand == 0 {
		return fmt.Errorf("flags %#x: %w", s.flags, errs.ErrCorrupt)
	}
	if s.rev == 0 || s.rev > r.parts[p].rev {
		return fmt.Errorf("revision %d: %w", s.rev, errs.ErrVersion)
	}
	if p < r.at || p == r.at && r.has && !r.parts[p].many {
		return fmt.Errorf("out of order: %w", errs.ErrCorrupt)
	}
	r.at, r.has = p, true
	m := r.parts[p].add(r.img)
	if err := decode(b, m); err != nil || s.rev == r.parts[p].rev || r.parts[p].older == nil {
		return err
	}
	return r.parts[p].older(s.rev, m)
}

func (r *reader) find(tag string) int {
	for i := range r.parts {
		if r.parts[i].tag == tag {
			return i
		}
	}
	return -1
}

// decode refuses what an encoder would not have written: fields that the schema
// does not have (a newer one has another revision), defaults written out, fields
// out of order. So there is one form of every record, and nothing hides in it.
func decode(b []byte, m proto.Message) error {
	if err := scan(b, m.ProtoReflect().Descriptor()); err != nil {
		return err
	}
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(b, m); err != nil {
		return fmt.Errorf("%w: %w", errs.ErrCorrupt, err)
	}
	again, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return fmt.Errorf("%w: %w", errs.ErrCorrupt, err)
	}
	if !bytes.Equal(b, again) {
		return fmt.Errorf("not as a writer writes it: %w", errs.ErrCorrupt)
	}
	return nil
}

// scan looks over a message before memory is spent on it. Two bytes of an empty
// record would become a hundred of memory, so records in lists have a least size.
func scan(b []byte, d protoreflect.MessageDescriptor) error {
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return fmt.Errorf("%s: %w: %w", d.Name(), errs.ErrCorrupt, protowire.ParseError(n))
		}
		size := protowire.ConsumeFieldValue(number, kind, b[n:])
		if size < 0 {
			return fmt.Errorf("%s: %w: %w", d.Name(), errs.ErrCorrupt, protowire.ParseError(size))
		}
		value := b[n : n+size]
		b = b[n+size:]
		f := d.Fields().ByNumber(number)
		if f == nil {
			return fmt.Errorf("%s: unknown field %d: %w", d.Name(), number, errs.ErrCorrupt)
		}
		if f.Message() == nil || kind != protowire.BytesType {
			continue
		}
		value, _ = protowire.ConsumeBytes(value)
		if f.IsList() && len(value) < leastSize(f.Message().Name()) {
			return fmt.Errorf("%s: %s of %d bytes: %w", d.Name(), f.Message().Name(), len(value), errs.ErrCorrupt)
		}
		if err := scan(value, f.Message()); err != nil {
			return err
		}
	}
	return nil
}

// leastSize is the fewest bytes that a record in a list has.
func leastSize(name protoreflect.Name) int {
	switch name {
	case "Thread":
		return gprSize
	case "SigInfo":
		return sigInfoSize
	case "RLimit": // no CPU time at all; there are at most sixteen
		return 0
	}
	return 2
}

func (r *reader) end(s section) error {
	if s.rev != 1 || s.flags != mustUnderstand || s.length != endSize {
		return fmt.Errorf("section %q: revision %d, %d bytes: %w", s.tag, s.rev, s.length, errs.ErrCorrupt)
	}
	b, err := r.body(s)
	if err != nil {
		return fmt.Errorf("section %q: %w", s.tag, err)
	}
	if e := parseEnd(b); e != r.sum {
		return fmt.Errorf("%d sections with checksum %08x, want %d with %08x: %w",
			r.sum.sections, r.sum.crc, e.sections, e.crc, errs.ErrCorrupt)
	}
	return nil
}

// nothingLeft makes sure that the end is the end.
func (r *reader) nothingLeft() error {
	if r.left != 0 {
		return fmt.Errorf("%d bytes behind the end: %w", r.left, errs.ErrCorrupt)
	}
	switch n, err := io.ReadFull(r.r, make([]byte, 1)); {
	case n > 0:
		return fmt.Errorf("bytes behind the end: %w", errs.ErrCorrupt)
	case !errors.Is(err, io.EOF):
		return err
	}
	return nil
}
