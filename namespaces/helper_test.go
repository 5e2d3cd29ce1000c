package namespaces

import (
	"bufio"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// need skips a test that lacks something, or fails it where everything should
// be there.
func need(t testing.TB, ok bool, what string) {
	t.Helper()
	switch {
	case ok:
	case os.Getenv("CI") == "true":
		t.Fatalf("needs %s", what)
	default:
		t.Skipf("needs %s", what)
	}
}

// box is a shell in namespaces of its own, standing in for a container's init.
// It runs the lines it is given and has no other process.
type box struct {
	pid int
	in  io.Writer
	out *bufio.Reader
}

const allNamespaces = unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC

// newBox starts a box; it is gone at the end of the test.
func newBox(t testing.TB, flags uintptr) *box {
	t.Helper()
	need(t, os.Geteuid() == 0, "root")
	cmd := exec.CommandContext(t.Context(), "/bin/sh")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags}
	if flags&unix.CLONE_NEWUSER != 0 {
		ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100000, Size: 1000}}
		cmd.SysProcAttr.UidMappings, cmd.SysProcAttr.GidMappings = ids, ids
		cmd.SysProcAttr.Credential = &syscall.Credential{} // root inside
	}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); errors.Is(err, syscall.EPERM) {
		need(t, false, "the right to make namespaces")
	} else if err != nil {
		t.Fatal(err)
	}
	b := &box{pid: cmd.Process.Pid, in: in, out: bufio.NewReader(out)}
	t.Cleanup(func() {
		if err := in.Close(); err != nil {
			t.Error(err)
		}
		cmd.Wait() //nolint:errcheck // the shell's status is its last command's
	})
	if flags&unix.CLONE_NEWNS != 0 {
		b.run(t, "mount --make-rprivate /")
	}
	return b
}

// run runs one line of shell in the box and returns what it printed.
func (b *box) run(t testing.TB, line string) string {
	t.Helper()
	if _, err := io.WriteString(b.in, line+"\necho \"done=$?\"\n"); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	for {
		l, err := b.out.ReadString('\n')
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		if status, ok := strings.CutPrefix(l, "done="); ok {
			if status != "0\n" {
				t.Fatalf("%s: status %s%s", line, status, said.String())
			}
			return strings.TrimSuffix(said.String(), "\n")
		}
		said.WriteString(l)
	}
}
