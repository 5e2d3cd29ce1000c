package pageserver

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/stasis-cr/stasis/cr/errs"
)

func TestRequest(t *testing.T) {
	good := request{kindStore, 3, 1 << 33, mostRead}.encode()
	with := func(at int, x ...byte) []byte {
		b := bytes.Clone(good)
		copy(b[at:], x)
		return b
	}
	for name, tt := range map[string]struct {
		b  []byte
		ok bool
	}{
		"store": {good, true}, "state": {with(0, 'S'), true}, "archive": {with(0, 'A'), true},
		"one byte": {with(16, 1, 0, 0, 0), true},
		"kind":     {with(0, 'X'), false}, "no kind": {with(0, 0), false},
		"reserved": {with(2, 1), false}, "nothing": {with(16, 0, 0, 0, 0), false},
		"more": {with(16, 1, 0, 0x10, 0), false}, "much": {with(16, 255, 255, 255, 255), false},
		"short": {good[:19], false}, "long": {append(bytes.Clone(good), 0), false}, "empty": {nil, false},
	} {
		q, err := parseRequest(tt.b)
		if (err == nil) != tt.ok {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil && !bytes.Equal(q.encode(), tt.b) {
			t.Errorf("%s: %+v is written as another", name, q)
		}
	}
}

func TestWelcome(t *testing.T) {
	good := (&welcome{Version, 77, [digestSize]byte{1, 2, 3}}).encode()
	w, err := parseWelcome(good)
	if err != nil || w.size != 77 || w.digest[2] != 3 || len(good) != welcomeSize {
		t.Fatalf("%+v, %v", w, err)
	}
	for name, tt := range map[string]struct {
		at   int
		x    byte
		want error
	}{
		"magic": {0, 'x', errProtocol}, "version": {8, 2, errs.ErrVersion}, "reserved": {15, 1, errProtocol},
		"empty": {16, 0, errProtocol}, "large": {20, 1, errProtocol},
	} {
		b := bytes.Clone(good)
		b[tt.at] = tt.x
		if _, err := parseWelcome(b); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := checkHello(hello()); err != nil {
		t.Error(err)
	}
	for i := range helloSize {
		b := hello()
		b[i] ^= 0x40
		if checkHello(b) == nil {
			t.Errorf("a greeting with another byte %d is taken", i)
		}
	}
}

func TestAnswer(t *testing.T) {
	for name, tt := range map[string]struct {
		answer string
		final  string // of an error that stays
		err    error
	}{
		"data":      {"\x00\x00\x00\x00\x04\x00\x00\x00abcd", "", nil},
		"other":     {"\x00\x00\x00\x00\x03\x00\x00\x00abc", "protocol", nil},
		"reserved":  {"\x00\x00\x01\x00\x04\x00\x00\x00abcd", "protocol", nil},
		"unknown":   {"\x07\x00\x00\x00\x04\x00\x00\x00abcd", "protocol", nil},
		"refused":   {"\x01\x00\x00\x00\x04\x00\x00\x00why\n", `says: "why\n"`, nil},
		"failed":    {"\x02\x00\x00\x00\x00\x00\x00\x00", `says: ""`, nil},
		"long text": {"\x02\x00\x00\x00\x00\x00\x00\x80", "protocol", nil},
		"cut":       {"\x00\x00\x00\x00\x04\x00\x00\x00abc", "", io.ErrUnexpectedEOF},
		"cut head":  {"\x00\x00", "", io.ErrUnexpectedEOF},
		"nothing":   {"", "", io.EOF},
	} {
		b := make([]byte, 4)
		err := readAnswer(strings.NewReader(tt.answer), b)
		_, final := errors.AsType[*finalError](err)
		switch {
		case final != (tt.final != "") || final && !strings.Contains(err.Error(), tt.final):
			t.Errorf("%s: %v", name, err)
		case !final && !errors.Is(err, tt.err):
			t.Errorf("%s: %v, want %v", name, err, tt.err)
		case err == nil && string(b) != "abcd":
			t.Errorf("%s: %q", name, b)
		}
	}
}

// FuzzRequest: what is read is written the same, and asks for no more than it may.
func FuzzRequest(f *testing.F) {
	f.Add(request{kindState, 0, 0, 1}.encode())
	f.Add(request{kindStore, 1 << 31, 1 << 63, mostRead}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		q, err := parseRequest(b)
		if err != nil {
			return
		}
		if q.length == 0 || q.length > mostRead || !bytes.Equal(q.encode(), b) {
			t.Errorf("%+v of %x", q, b)
		}
	})
}

// FuzzServer: whatever a server sends, a client ends with an error or what it
// asked for.
func FuzzServer(f *testing.F) {
	w := (&welcome{Version, 77, [digestSize]byte{}}).encode()
	f.Add(w, append(appendAnswer(nil, statusData, 4), "abcd"...))
	f.Add(w, append(appendAnswer(nil, statusFailed, 2), "no"...))
	f.Fuzz(func(t *testing.T, first, answer []byte) {
		if w, err := parseWelcome(first); err == nil && !bytes.Equal(w.encode(), first) {
			t.Errorf("a welcome is written as another: %x", first)
		}
		b := make([]byte, 4)
		if readAnswer(bytes.NewReader(answer), b) == nil && !bytes.HasPrefix(answer[answerSize:], b) {
			t.Errorf("%x of %x", b, answer)
		}
	})
}
