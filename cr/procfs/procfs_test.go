package procfs

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/stasis-cr/stasis/cr/errs"
)

// parseCase is one file and what it must be parsed to.
type parseCase[T any] struct {
	name, text string
	want       T
}

func checkParse[T any](t *testing.T, parse func(io.Reader) (T, error), cases []parseCase[T]) {
	t.Helper()
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got, err := parse(strings.NewReader(c.text))
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, c.want) {
				t.Errorf("\n got %+v\nwant %+v", got, c.want)
			}
		})
	}
}

// checkRefused checks that each text is an ErrFormat and gives no half result.
func checkRefused[T any](t *testing.T, parse func(io.Reader) (T, error), texts ...string) {
	t.Helper()
	for _, text := range texts {
		got, err := parse(strings.NewReader(text))
		if !errors.Is(err, ErrFormat) {
			t.Errorf("%q: error %v, want ErrFormat", text, err)
		}
		if !reflect.ValueOf(&got).Elem().IsZero() {
			t.Errorf("%q: a half result: %+v", text, got)
		}
	}
}

// fuzz checks that a parser neither panics nor makes much more of its input than
// there is in it, and that an error leaves no half result.
func fuzz[T any](f *testing.F, parse func(io.Reader) (T, error), seeds ...string) {
	f.Helper()
	for _, s := range seeds {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := parse(strings.NewReader(text))
		if err == nil {
			return
		}
		if !errors.Is(err, ErrFormat) {
			t.Errorf("error %v, want ErrFormat", err)
		}
		if !reflect.ValueOf(&got).Elem().IsZero() {
			t.Errorf("a half result: %+v", got)
		}
	})
}

// replaced is text with one part replaced, which must be there.
func replaced(t testing.TB, text, old, by string) string {
	t.Helper()
	if !strings.Contains(text, old) {
		t.Fatalf("no %q in the text", old)
	}
	return strings.Replace(text, old, by, 1)
}

// missing skips a test for want of something; in CI everything has to be there.
func missing(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal("missing: " + what)
	}
	t.Skip("missing: " + what)
}

// linux skips a test that reads the machine's own /proc elsewhere.
func linux(t *testing.T) int {
	t.Helper()
	if runtime.GOOS != "linux" {
		missing(t, "Linux's /proc")
	}
	return os.Getpid()
}

func TestGone(t *testing.T) {
	linux(t)
	if _, err := ReadStatus(1 << 30); !errors.Is(err, errs.ErrGone) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("status of a task that never was: %v", err)
	}
	if _, err := ReadTasks(1 << 30); !errors.Is(err, errs.ErrGone) {
		t.Errorf("threads of a task that never was: %v", err)
	}
	if _, err := ReadFDInfo(os.Getpid(), 1<<20); err == nil || errors.Is(err, errs.ErrGone) {
		t.Errorf("fdinfo of a descriptor that is not open: %v", err)
	}
}

func TestLists(t *testing.T) {
	pid := linux(t)
	for name, list := range map[string]func() ([]int, error){
		"processes": ReadProcesses,
		"tasks":     func() ([]int, error) { return ReadTasks(pid) },
	} {
		if got, err := list(); err != nil || !slices.Contains(got, pid) {
			t.Errorf("%s: %v, %v: not this process", name, got, err)
		}
	}
	if got, err := ReadFDs(pid); err != nil || len(got) < 3 {
		t.Errorf("descriptors: %v, %v", got, err)
	}
}

func TestErrorNamesFile(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "7"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "7", "status"), []byte("Name:\tx\nnonsense\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := FS(root).Status(7)
	if !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "7/status") || !strings.Contains(err.Error(),
		"nonsense") {
		t.Errorf("error %v should name the file and quote the line", err)
	}
}

func TestLongLine(t *testing.T) {
	_, err := ParseStatus(strings.NewReader("Groups:\t" + strings.Repeat("1", maxLine)))
	if !errors.Is(err, ErrFormat) {
		t.Errorf("line of over 1 MiB: %v", err)
	}
}

func TestNumber(t *testing.T) {
	var i32 int32
	var u32 uint32
	var i64 int64
	for _, c := range []struct {
		text string
		ok   bool
	}{{"2147483647", true}, {"2147483648", false}, {"-1", true}, {"4294967295", false}, {"-2147483649", false}, {
		"",
		false,
	}, {"-", false}, {"+1", false}, {" 1", false}} {
		if got := number([]byte(c.text), 10, &i32); got != c.ok {
			t.Errorf("int32 of %q: %v", c.text, got)
		}
	}
	if !number([]byte("4294967295"), 10, &u32) || number([]byte("4294967296"), 10, &u32) || number([]byte("-1"), 10,
		&u32) {
		t.Error("uint32 has wrong bounds")
	}
	if !number([]byte("-9223372036854775808"), 10, &i64) || number([]byte("9223372036854775808"), 10, &i64) {
		t.Error("int64 has wrong bounds")
	}
	if _, ok := unsigned([]byte("18446744073709551616"), 10); ok {
		t.Error("uint64 overflows")
	}
	if n, ok := unsigned([]byte("18446744073709551615"), 10); !ok || n != 1<<64-1 {
		t.Error("uint64 does not reach its end")
	}
}
