package namespaces

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestEnter(t *testing.T) {
	b := newBox(t, allNamespaces)
	before := identity(t, "self")
	sentinel := errors.New("sentinel")
	var inside map[string]string
	err := Enter(t.Context(), b.pid, func() error {
		// /proc is still the test's own, so the thread finds itself under its old name.
		inside = identity(t, "thread-self")
		return sentinel
	})
	if !errors.Is(err, sentinel) {
		t.Fatalf("got %v, want what the function answered", err)
	}
	for kind, theirs := range inside {
		if want := link(t, nsPath(b.pid, kind)); theirs != want {
			t.Errorf("%s: entered %s, want %s", kind, theirs, want)
		}
	}
	if after := identity(t, "self"); len(after) != len(before) || after["mnt"] != before["mnt"] {
		t.Errorf("the test's own namespaces changed: %v, were %v", after, before)
	}
}

func TestEnterTakesRoot(t *testing.T) {
	need(t, os.Geteuid() == 0, "root")
	dir := t.TempDir()
	// Any static program that waits does: the helper of PIDSetter reads its input.
	if err := os.WriteFile(dir+"/wait", setterELF(), 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), "/wait")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS, Chroot: dir}
	cmd.Dir = "/"
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(in.Close(), cmd.Wait()); err != nil {
			t.Error(err)
		}
	})
	err = Enter(t.Context(), cmd.Process.Pid, func() error {
		if err := unix.Access("/wait", unix.X_OK); err != nil {
			return err
		}
		return unix.Access("wait", unix.X_OK) // the working directory is the root too
	})
	if err != nil {
		t.Error(err)
	}
	if _, err := os.Stat("/wait"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("our own root changed: %v", err)
	}
}

// TestUserNamespace does what a restore does in a container whose root is nobody
// on the host.
func TestUserNamespace(t *testing.T) {
	b := newBox(t, allNamespaces|unix.CLONE_NEWUSER)
	dir := t.TempDir()
	must(t, os.Chmod(filepath.Dir(dir), 0o755)) // for root inside
	b.run(t, "mount -t tmpfs x "+dir+" && echo hello > "+dir+"/file")
	ns, _, err := Describe(t.Context(), b.pid)
	must(t, err)
	if ns.GetUidMap() != "0 100000 1000" || !saves(ns, dir) {
		t.Errorf("got %q, %v", ns.GetUidMap(), ns.GetTmpfs())
	}
	var archive bytes.Buffer
	must(t, SaveTmpfs(t.Context(), b.pid, ownAt(t, b.pid, dir), &archive))
	b.run(t, "echo changed > "+dir+"/file")
	must(t, RestoreTmpfs(t.Context(), b.pid, dir, &archive))
	if got := b.run(t, "stat -c %u "+dir+"/file; cat "+dir+"/file"); got != "0\nhello" {
		t.Errorf("restored %q", got)
	}
	ns.Hostname, ns.LoopbackUp = "other", true
	must(t, Restore(t.Context(), b.pid, ns))
	must(t, Enter(t.Context(), b.pid, func() error { return unix.Access(dir+"/file", unix.F_OK) }))
	s := startSetter(t, b, nil)
	must(t, s.Set(76))
	if got := b.run(t, forked); got != "77" {
		t.Errorf("after 76 came %s", got)
	}
}

func TestEnterGone(t *testing.T) {
	err := Enter(t.Context(), 1<<22+1, func() error { t.Error("ran"); return nil })
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want not exist", err)
	}
}

func TestEnterGoexit(t *testing.T) {
	need(t, os.Geteuid() == 0, "root")
	err := Enter(t.Context(), os.Getpid(), func() error { runtime.Goexit(); return nil })
	if !errors.Is(err, errNoReturn) {
		t.Errorf("got %v, want %v", err, errNoReturn)
	}
}

func identity(t *testing.T, who string) map[string]string {
	t.Helper()
	ids := make(map[string]string)
	for _, k := range enterKinds() {
		ids[k.name] = link(t, "/proc/"+who+"/ns/"+k.name)
	}
	return ids
}

func link(t *testing.T, path string) string {
	t.Helper()
	s, err := os.Readlink(path)
	if err != nil {
		t.Error(err)
	}
	return s
}
