package namespaces

import (
	"errors"
	"os"
	"strconv"
	"syscall"
	"testing"

	"github.com/stasis-cr/stasis/cr/errs"
	"golang.org/x/sys/unix"
)

// forked returns the pid of a fresh process of the box.
const forked = "sh -c 'echo $$'"

func TestPIDSetter(t *testing.T) {
	b := newBox(t, unix.CLONE_NEWPID|unix.CLONE_NEWNS)
	s := startSetter(t, b, nil)
	for _, want := range []int{42, 7, 30000, 301, 2000} {
		if err := s.Set(want - 1); err != nil {
			t.Fatal(err)
		}
		if got := b.run(t, forked); got != strconv.Itoa(want) {
			t.Errorf("after %d came %s", want-1, got)
		}
	}
	if err := s.Set(-1); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("a pid below zero: %v, want EINVAL", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat("/proc/" + strconv.Itoa(s.host)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("helper after Close: %v, want not exist", err)
	}
}

func TestPIDSetterAvoidsTaken(t *testing.T) {
	b := newBox(t, unix.CLONE_NEWPID|unix.CLONE_NEWNS)
	taken := func(pid int) bool { return pid < 50 || pid == 51 }
	s := startSetter(t, b, taken)
	if s.PID() != 50 {
		t.Errorf("helper has pid %d, want 50", s.PID())
	}
	again := startSetter(t, b, taken) // 50 is in use now, 51 is taken
	if again.PID() != 52 {
		t.Errorf("second helper has pid %d, want 52", again.PID())
	}
	if err := s.Set(1); err != nil {
		t.Fatal(err)
	}
	if got := b.run(t, forked); got != "2" {
		t.Errorf("the first helper's pid went to %s, want 2", got)
	}
}

func TestPIDSetterHostNamespace(t *testing.T) {
	need(t, os.Geteuid() == 0, "root")
	if _, err := StartPIDSetter(t.Context(), os.Getpid(), nil); !errors.Is(err, errs.ErrUnsupported) {
		t.Errorf("got %v, want not supported", err)
	}
}

func TestPIDSetterHelperDies(t *testing.T) {
	b := newBox(t, unix.CLONE_NEWPID|unix.CLONE_NEWNS)
	s := startSetter(t, b, nil)
	b.run(t, "kill -9 "+strconv.Itoa(s.PID()))
	if err := s.Set(10); !errors.Is(err, errs.ErrGone) {
		t.Errorf("got %v, want gone", err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}

func TestSetterSize(t *testing.T) {
	if n := len(setterELF()); n >= 300 {
		t.Errorf("program has %d bytes, want less than 300", n)
	}
}

func BenchmarkPIDSetterSet(b *testing.B) {
	s := startSetter(b, newBox(b, unix.CLONE_NEWPID|unix.CLONE_NEWNS), nil)
	for b.Loop() {
		if err := s.Set(1000); err != nil {
			b.Fatal(err)
		}
	}
}

func startSetter(t testing.TB, b *box, taken func(int) bool) *PIDSetter {
	t.Helper()
	s, err := StartPIDSetter(t.Context(), b.pid, taken)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}
