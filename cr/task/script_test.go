package task

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/remote"
)

// script is a remote.Caller without a task: it answers from a function and
// writes down what was asked. Lent memory lies at scriptBase and above.
type script struct {
	answer func(c *remote.Call, s *script) uint64 // nil: 0 to everything
	mem    []byte
	said   []string
	resets int
}

const scriptBase = 0x10000

var _ remote.Caller = (*script)(nil)

func (s *script) Call(ctx context.Context, nr uintptr, args ...uint64) (uint64, error) {
	calls := []remote.Call{{NR: nr}}
	copy(calls[0].Args[:], args)
	if err := s.Batch(ctx, calls); err != nil {
		return 0, err
	}
	return calls[0].Result()
}

func (s *script) Batch(_ context.Context, calls []remote.Call) error {
	for i := range calls {
		c := &calls[i]
		words := []string{callName(c.NR)}
		for _, a := range c.Args[:lastArg(c)] {
			words = append(words, s.word(a))
		}
		s.said = append(s.said, strings.Join(words, " "))
		if s.answer != nil {
			c.Ret = s.answer(c, s)
		}
	}
	return nil
}

func lastArg(c *remote.Call) int {
	n := len(c.Args)
	for n > 0 && c.Args[n-1] == 0 {
		n--
	}
	return n
}

// word shows an argument; one that points to lent memory by what lies there.
func (s *script) word(a uint64) string {
	if at := a - scriptBase; a >= scriptBase && at < uint64(len(s.mem)) {
		return fmt.Sprintf("&%x", s.mem[at:min(at+8, uint64(len(s.mem)))])
	}
	return strconv.FormatUint(a, 16)
}

func (s *script) Push(b []byte) (remote.Addr, error) {
	for len(s.mem)%16 != 0 {
		s.mem = append(s.mem, 0xee)
	}
	at := len(s.mem)
	s.mem = append(s.mem, b...)
	return remote.Addr(scriptBase + at), nil
}

func (s *script) Read(at remote.Addr, b []byte) error {
	from := int64(at) - scriptBase
	if from < 0 || from+int64(len(b)) > int64(len(s.mem)) {
		return unix.EFAULT
	}
	copy(b, s.mem[from:])
	return nil
}

// Write is the counterpart of Read.
func (s *script) Write(at remote.Addr, b []byte) error {
	from := int64(at) - scriptBase
	if from < 0 || from+int64(len(b)) > int64(len(s.mem)) {
		return unix.EFAULT
	}
	copy(s.mem[from:], b)
	return nil
}

func (s *script) Reset() { s.resets++ }

func callName(nr uintptr) string {
	names := map[uintptr]string{
		unix.SYS_PRCTL: "prctl", unix.SYS_SETGROUPS: "setgroups", unix.SYS_SETRESUID: "setresuid", unix.SYS_SETRESGID: "setresgid",
		unix.SYS_SETFSUID: "setfsuid", unix.SYS_SETFSGID: "setfsgid", unix.SYS_CAPSET: "capset", unix.SYS_SECCOMP: "seccomp",
		unix.SYS_RT_SIGACTION: "rt_sigaction", unix.SYS_SIGALTSTACK: "sigaltstack", unix.SYS_SETITIMER: "setitimer",
		unix.SYS_TIMER_CREATE: "timer_create", unix.SYS_TIMER_SETTIME: "timer_settime", unix.SYS_TIMER_DELETE: "timer_delete",
		unix.SYS_RT_TGSIGQUEUEINFO: "rt_tgsigqueueinfo", unix.SYS_RT_SIGQUEUEINFO: "rt_sigqueueinfo",
		unix.SYS_RT_SIGTIMEDWAIT: "rt_sigtimedwait", unix.SYS_SET_TID_ADDRESS: "set_tid_address", unix.SYS_RSEQ: "rseq",
		unix.SYS_SET_ROBUST_LIST: "set_robust_list", unix.SYS_UMASK: "umask", unix.SYS_PERSONALITY: "personality",
	}
	if n := names[nr]; n != "" {
		return n
	}
	return fmt.Sprintf("call%d", nr)
}

// said compares the calls that asks make with a transcript.
func said(t *testing.T, asks []ask, want ...string) {
	t.Helper()
	s := &script{}
	if err := run(t.Context(), s, asks); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(s.said, want) {
		t.Errorf("calls:\n\t%s\nwant:\n\t%s", strings.Join(s.said, "\n\t"), strings.Join(want, "\n\t"))
	}
}

func errnoWord(e unix.Errno) uint64 { return -uint64(e) }

func TestRunHandsOutAnswers(t *testing.T) {
	var got []string
	s := &script{answer: func(c *remote.Call, s *script) uint64 {
		switch c.NR {
		case 1:
			if s.Write(remote.Addr(c.Args[3]), []byte("answered")) != nil {
				return errnoWord(unix.EFAULT)
			}
			return 7
		case 2:
			return errnoWord(unix.EAGAIN)
		}
		return ^uint64(4095) // just below the errors: a value
	}}
	err := run(t.Context(), s, []ask{
		{what: "one", nr: 1, args: [6]uint64{5}, out: 8, outArg: 3, done: func(v uint64, b []byte) error {
			got = append(got, fmt.Sprintf("%d %s", v, b))
			return nil
		}},
		{what: "two", nr: 2, may: []unix.Errno{unix.EAGAIN}, done: func(uint64, []byte) error { return errors.New("called") }},
		{what: "three", nr: 3, done: func(v uint64, b []byte) error {
			got = append(got, fmt.Sprint(v == ^uint64(4095), b == nil))
			return nil
		}},
	})
	if want := []string{"7 answered", "true true"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
	if s.resets != 1 {
		t.Errorf("lent memory was given back %d times", s.resets)
	}
}

func TestRunNamesWhatFailed(t *testing.T) {
	s := &script{answer: func(*remote.Call, *script) uint64 { return errnoWord(unix.EPERM) }}
	err := run(t.Context(), s, []ask{{what: "capset", nr: unix.SYS_CAPSET, may: []unix.Errno{unix.EINVAL}}})
	if !errors.Is(err, unix.EPERM) || err.Error() != "capset: operation not permitted" {
		t.Errorf("got %v", err)
	}
	if err := run(t.Context(), s, nil); err != nil {
		t.Errorf("no asks: %v", err)
	}
	odd := errors.New("odd")
	err = run(t.Context(), &script{}, []ask{{what: "x", done: func(uint64, []byte) error { return odd }}})
	if !errors.Is(err, odd) {
		t.Errorf("got %v", err)
	}
}

func TestLendPointers(t *testing.T) {
	s := &script{}
	err := run(t.Context(), s, []ask{
		{what: "two pointers", nr: 900, in: u64s(1, 2), inArg: 0, alsoArg: 1, alsoAt: 8},
		{what: "a pointer within", nr: 901, in: u64s(9, 0, 3, 4), inArg: 2, selfAt: 8, selfTo: 16},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"call900 &0100000000000000 &0200000000000000", "call901 0 0 &0900000000000000"}
	if !slices.Equal(s.said, want) {
		t.Errorf("%q, want %q", s.said, want)
	}
	head := s.mem[len(s.mem)-32:]
	tail := word(head, 1) - scriptBase
	if word(s.mem[tail:], 0) != 3 || word(s.mem[tail:], 1) != 4 {
		t.Errorf("the inner pointer leads to %x", s.mem[tail:tail+16])
	}
}
