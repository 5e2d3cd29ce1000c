package box

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestDiffer(t *testing.T) {
	was := Look{"a", "b", "b", "c"}
	is := Look{"c", "b", "d", "a"}
	if got, want := Differ(was, is), []string{"+d", "-b"}; !slices.Equal(got, want) {
		t.Errorf("difference: %v, want %v", got, want)
	}
	if got := Differ(was, was); got != nil {
		t.Errorf("difference with itself: %v", got)
	}
}

func TestBrief(t *testing.T) {
	const out = "level=warning msg=a\nlevel=error msg=b\nother\nlevel=error msg=c\n"
	if got, want := brief(out), "level=error msg=b\nlevel=error msg=c"; got != want {
		t.Errorf("brief: %q, want %q", got, want)
	}
	if got := len(brief(strings.Repeat("x", 10000))); got != 2000 {
		t.Errorf("length of a long text: %d, want 2000", got)
	}
	if got := brief(" plain\n"); got != "plain" {
		t.Errorf("brief: %q, want plain", got)
	}
}

func TestKnows(t *testing.T) {
	e := Engine{Save: filepath.Join(t.TempDir(), "engine")}
	const script = "#!/bin/sh\ncase \"$*\" in 'restore --lazy-pages --help') exit 0;; esac\nexit 1\n"
	if err := os.WriteFile(e.Save, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	if !e.Knows(t.Context(), "restore", "--lazy-pages") {
		t.Error("a flag that it has is not known")
	}
	if e.Knows(t.Context(), "restore", "--other") || (Engine{Save: "/nowhere"}).Knows(t.Context(), "restore") {
		t.Error("a flag that it has not, or one of no engine, is known")
	}
}

func TestPoll(t *testing.T) {
	n := 0
	if err := Poll(t.Context(), func() (bool, error) { n++; return n == 3, nil }); err != nil || n != 3 {
		t.Errorf("asked %d times (%v), want 3", n, err)
	}
	stop := errors.New("stop")
	if err := Poll(t.Context(), func() (bool, error) { return false, stop }); !errors.Is(err, stop) {
		t.Errorf("error: %v, want %v", err, stop)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(stop)
	if err := Poll(ctx, func() (bool, error) { return false, nil }); !errors.Is(err, stop) {
		t.Errorf("error of a context that ended: %v, want %v", err, stop)
	}
}

func proposed() *specs.Spec {
	return &specs.Spec{
		Root: &specs.Root{Readonly: true}, Process: &specs.Process{Terminal: true},
		Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.NetworkNamespace}}},
	}
}

func TestAdapt(t *testing.T) {
	s := proposed()
	adapt(s, Config{Args: []string{"/bin/x"}, UID: 1000})
	if s.Process.Terminal || s.Root.Readonly || s.Process.User.GID != 1000 {
		t.Errorf("process %+v, root %+v", s.Process, s.Root)
	}
	if !s.Process.NoNewPrivileges || s.Linux.Seccomp == nil {
		t.Error("a user's box has no seccomp profile or may gain privileges")
	}
	s = proposed()
	adapt(s, Config{Caps: DefaultCaps(), HostNet: true})
	if s.Process.NoNewPrivileges || s.Linux.Seccomp != nil || len(s.Linux.Namespaces) != 1 {
		t.Errorf("root's box: no new privileges %v, %d namespaces, want false and 1",
			s.Process.NoNewPrivileges, len(s.Linux.Namespaces))
	}
}

func TestAlive(t *testing.T) {
	if alive(1 << 22) {
		t.Error("a pid that can't be is alive")
	}
	if !alive(1) {
		t.Error("init is not alive")
	}
}
