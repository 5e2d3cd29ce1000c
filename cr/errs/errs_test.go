package errs

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"
)

func TestErrorText(t *testing.T) {
	cause := errors.New("operation not permitted")
	for want, e := range map[string]*Error{
		"restore pid 12 fd 7: operation not permitted":            {Op: "restore", PID: 12, Obj: FD(7), Err: cause},
		"capture mapping 1000-3000: operation not permitted":      {Op: "capture", Obj: Range{0x1000, 0x3000}, Err: cause},
		"pid 3: operation not permitted":                          {PID: 3, Err: cause},
		"pid 3 (sleep): operation not permitted":                  {PID: 3, Obj: Name("(sleep)"), Err: cause},
		"restore pid 1: fd 2: operation not permitted":            {Op: "restore", PID: 1, Err: &Error{Obj: FD(2), Err: cause}},
		"capture: operation not permitted":                        {Op: "capture", Err: cause},
		"capture mapping 0-ffffffffffffffff: file does not exist": {Op: "capture", Obj: Range{0, ^uint64(0)}, Err: fs.ErrNotExist},
	} {
		if got := e.Error(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestErrorIsItsCause(t *testing.T) {
	err := fmt.Errorf("outer: %w", &Error{PID: 4, Err: fmt.Errorf("inner: %w", ErrGone)})
	if !errors.Is(err, ErrGone) || errors.Is(err, ErrCorrupt) {
		t.Errorf("%v is not told apart", err)
	}
	var e *Error
	if !errors.As(err, &e) || e.PID != 4 {
		t.Errorf("%v hides its task", err)
	}
}

func TestOneLine(t *testing.T) {
	a, b := errors.New("a"), errors.New("b\r\nc")
	for want, err := range map[string]error{
		"a":            a,
		"a; b; c":      errors.Join(a, b),
		"x: a; b; c":   fmt.Errorf("x: %w", errors.Join(a, b)),
		"a; a; b; c":   errors.Join(a, errors.Join(a, b)),
		"trailing":     errors.New("trailing\n\n"),
		"":             errors.New(""),
		"tab\tremains": errors.New("tab\tremains"),
	} {
		if got := OneLine(err); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func FuzzOneLine(f *testing.F) {
	f.Add("a\nb\r\n")
	f.Fuzz(func(t *testing.T, s string) {
		if strings.ContainsAny(OneLine(errors.New(s)), "\r\n") {
			t.Errorf("%q keeps a line break", s)
		}
	})
}
