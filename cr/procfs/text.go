package procfs

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"sync"
)

// ErrFormat means that a file of /proc holds what its parser doesn't know.
var ErrFormat = errors.New("not understood")

// maxLine bounds a line. The longest known is Groups in status: 65536 groups of
// up to eleven bytes each.
const maxLine = 1 << 20

// smallFile is more than a file of a few lines has.
const smallFile = 4 << 10

// lineBuffers are what eachLine reads into. Much of the price of a long file is in the
// number of calls, so they are large; new memory has its price, too, so they are kept.
var lineBuffers = sync.Pool{New: func() any {
	b := make([]byte, 32<<10)
	return &b
}}

// badLine is the error for a line.
func badLine(line []byte) error {
	const most = 200
	if len(line) > most {
		return fmt.Errorf("line %q...: %w", line[:most], ErrFormat)
	}
	return fmt.Errorf("line %q: %w", line, ErrFormat)
}

// eachLine calls f for each line of r, without its newline. The slice is valid
// until f returns. If f does not understand it, the error quotes the line.
func eachLine(r io.Reader, f func(line []byte) bool) error {
	b := lineBuffers.Get().(*[]byte) //nolint:forcetypeassert,errcheck // it holds nothing else
	defer lineBuffers.Put(b)
	s := bufio.NewScanner(r)
	s.Buffer((*b)[:0], maxLine)
	s.Split(splitLines)
	for s.Scan() {
		if !f(s.Bytes()) {
			return badLine(s.Bytes())
		}
	}
	if err := s.Err(); errors.Is(err, bufio.ErrTooLong) {
		return fmt.Errorf("line of more than %d bytes: %w", maxLine, ErrFormat)
	} else if err != nil {
		return err
	}
	return nil
}

// splitLines is bufio.ScanLines, but leaves a carriage return where it is: it
// may be the last byte of a path.
func splitLines(data []byte, end bool) (int, []byte, error) {
	if i := bytes.IndexByte(data, '\n'); i >= 0 {
		return i + 1, data[:i], nil
	}
	if end && len(data) > 0 {
		return len(data), data, nil
	}
	return 0, nil, nil
}

// readAll reads at most most bytes and refuses a file that has more.
func readAll(r io.Reader, most int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, most+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > most {
		return nil, fmt.Errorf("more than %d bytes: %w", most, ErrFormat)
	}
	return b, nil
}

// unsigned reads a whole number of base 8, 10 or 16, without sign or prefix.
func unsigned(b []byte, base uint64) (uint64, bool) {
	if len(b) == 0 {
		return 0, false
	}
	var n uint64
	for _, c := range b {
		d := digit(c)
		if d >= base || n > math.MaxUint64/base {
			return 0, false
		}
		n *= base
		if n > math.MaxUint64-d {
			return 0, false
		}
		n += d
	}
	return n, true
}

func digit(c byte) uint64 {
	switch {
	case c >= '0' && c <= '9':
		return uint64(c - '0')
	case c >= 'a' && c <= 'f':
		return uint64(c-'a') + 10
	case c >= 'A' && c <= 'F':
		return uint64(c-'A') + 10
	}
	return math.MaxUint64
}

// whole are the types that fields have.
type whole interface {
	~int | ~int32 | ~int64 | ~uint16 | ~uint32 | ~uint64 | ~uint8
}

// number stores a number of the given base that fits T.
func number[T whole](b []byte, base uint64, to *T) bool {
	neg := len(b) > 0 && b[0] == '-'
	if neg {
		b = b[1:]
	}
	n, ok := unsigned(b, base)
	if !ok {
		return false
	}
	v := T(n)
	if neg {
		v = -v
		*to = v
		return v <= 0 && uint64(-v) == n && (T(0)-1 < 0)
	}
	*to = v
	return v >= 0 && uint64(v) == n
}

// dec, hex and oct store a number; surrounding blanks are ignored.
func dec[T whole](b []byte, to *T) bool { return number(bytes.TrimSpace(b), 10, to) }

func hex[T whole](b []byte, to *T) bool { return number(bytes.TrimSpace(b), 16, to) }

func oct[T whole](b []byte, to *T) bool { return number(bytes.TrimSpace(b), 8, to) }

// decs stores a list of numbers between blanks; an empty one is nil.
func decs[T whole](b []byte, to *[]T) bool {
	var out []T
	for word := range bytes.FieldsSeq(b) {
		var n T
		if !number(word, 10, &n) {
			return false
		}
		out = append(out, n)
	}
	*to = out
	return true
}

// fill stores as many numbers as to has room for, no more and no fewer.
func fill[T whole](b []byte, base uint64, to []T) bool {
	i := 0
	for word := range bytes.FieldsSeq(b) {
		if i == len(to) || !number(word, base, &to[i]) {
			return false
		}
		i++
	}
	return i == len(to)
}

// cutWord takes the first word off b; blanks before it are skipped, one behind
// it is taken off.
func cutWord(b []byte) (word, rest []byte) {
	b = bytes.TrimLeft(b, " \t")
	if i := bytes.IndexAny(b, " \t"); i >= 0 {
		return b[:i], b[i+1:]
	}
	return b, nil
}

// field is one "Key:\tvalue" line and where its value goes.
type field struct {
	key  string
	need bool // every supported kernel writes it
	set  func(value []byte) bool
}

// parseFields reads a file of "Key: value" lines in the kernel's order. Lines
// that are not in the list are skipped; one that comes twice is refused.
func parseFields(r io.Reader, fields []field) error {
	seen := make([]bool, len(fields))
	next := 0
	err := eachLine(r, func(line []byte) bool {
		key, value, ok := bytes.Cut(line, []byte(":"))
		if !ok {
			return false
		}
		for range fields {
			i := next
			next = (next + 1) % len(fields)
			if fields[i].key != string(key) {
				continue
			}
			ok = !seen[i] && fields[i].set(value)
			seen[i] = true
			break
		}
		return ok
	})
	if err != nil {
		return err
	}
	for i, f := range fields {
		if f.need && !seen[i] {
			return fmt.Errorf("no line %q: %w", f.key, ErrFormat)
		}
	}
	return nil
}
