package mem

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/remote"
	"github.com/stasis-cr/stasis/cr/sys"
	"github.com/stasis-cr/stasis/cr/tracer"
)

// ownSleeper takes over a process with one thread, which is killed in the end.
func ownSleeper(t *testing.T) *remote.Owned {
	t.Helper()
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), "sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() //nolint:errcheck // it is ours and not waited for yet
		_ = cmd.Wait()         //nolint:errcheck // killed
	})
	task, err := tracer.Seize(cmd.Process.Pid, tracer.ExitKill|tracer.TraceFork|tracer.TraceVfork|tracer.TraceClone)
	needs(t, "the right to trace a child", !errors.Is(err, unix.EPERM))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := task.Halt(t.Context(), 10*time.Second); err != nil {
		t.Fatal(err)
	}
	own, err := remote.Own(t.Context(), task, 0, remote.OwnOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return own
}

// descriptors lists what a process has open.
func descriptors(t *testing.T, pid int) []string {
	t.Helper()
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	for i, l := range links {
		to, err := os.Readlink(l)
		if err != nil {
			t.Fatal(err)
		}
		links[i] += " -> " + to
	}
	return links
}

// TestOpenUserfault fills a task's memory through a userfaultfd of both sorts, of
// which the task keeps nothing.
func TestOpenUserfault(t *testing.T) {
	own := ownSleeper(t)
	ctx, pid := t.Context(), own.Task().TID
	channel, err := remote.OpenChannel(ctx, own, 50)
	if err != nil {
		t.Fatal(err)
	}
	defer channel.Close() //nolint:errcheck // it holds nothing
	was := descriptors(t, pid)
	for name, flags := range map[string]uint64{"by the task": sys.UFFDUserModeOnly, "by the device": 0} {
		at, err := own.Call(ctx, unix.SYS_MMAP, 0, 4*PageSize, unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, ^uint64(0), 0)
		if err != nil {
			t.Fatal(err)
		}
		uffd, err := OpenUserfault(ctx, own, channel, flags, 0)
		if flags == 0 && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission)) {
			t.Logf("%s is not there, or not ours", userfaultDevice)
			continue
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := sys.UFFDRegister(uffd, at, at+4*PageSize, sys.UFFDMissing); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		want := noise(9, 2*PageSize)
		if n, err := sys.UFFDCopy(uffd, at+PageSize, want, false); n != len(want) || err != nil {
			t.Fatalf("%s: copied %d bytes, %v", name, n, err)
		}
		if err := uffd.Close(); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 4*PageSize)
		if err := own.Read(remote.Addr(at), got); err != nil {
			t.Fatal(err)
		}
		if want := slices.Concat(make([]byte, PageSize), want, make([]byte, PageSize)); !bytes.Equal(got, want) {
			t.Errorf("%s: the memory is not what was put", name)
		}
		if is := descriptors(t, pid); !slices.Equal(was, is) {
			t.Errorf("%s: the task has %v open, had %v", name, is, was)
		}
	}
	if _, err := OpenUserfault(ctx, own, channel, sys.UFFDUserModeOnly, 1<<63); err == nil {
		t.Error("a feature that no kernel has is there")
	}
	if is := descriptors(t, pid); !slices.Equal(was, is) {
		t.Errorf("after an error the task has %v open, had %v", is, was)
	}
}
