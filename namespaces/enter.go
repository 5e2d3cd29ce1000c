package namespaces

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Enter runs f on an OS thread of its own that has joined the network, UTS, IPC
// and mount namespaces of the task pid, with root and working directory at the
// root of that task. In a container with a user namespace, files that f makes
// belong to the container's root. The thread ends with f, so f may do to its file system
// attributes what it likes.
//
// f must not start goroutines that need the namespaces: they would run on
// another thread. Enter waits for f; a ctx that is done before f begins is the
// only one that counts.
func Enter(ctx context.Context, pid int, f func() error) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return onThread(func() error {
		if err := join(pid); err != nil {
			return fmt.Errorf("enter the namespaces of task %d: %w", pid, err)
		}
		return f()
	})
}

// within runs f on a thread of its own that has joined one namespace of the task
// pid. Unlike in [Enter], files are still our own: /proc can be trusted.
func within(pid int, kind nsKind, f func() error) error {
	return onThread(func() error {
		if err := joinOne(pid, kind); err != nil {
			return fmt.Errorf("enter a namespace of task %d: %w", pid, err)
		}
		return f()
	})
}

var errNoReturn = errors.New("function ended its goroutine")

// onThread runs f on a thread that is thrown away afterwards. The runtime makes
// new threads from a template that never ran f, so nothing leaks out of it.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err := errNoReturn
		defer func() { done <- err }()
		if unix.Gettid() == unix.Getpid() {
			// The runtime parks the first thread for good instead of ending it, and
			// /proc/self would show its namespaces: give it back untouched.
			err = onThread(f)
			runtime.UnlockOSThread()
			return
		}
		err = f()
	}()
	return <-done
}

// enterKinds are the namespaces that a thread joins, the mount namespace last:
// joining it changes what /proc means.
func enterKinds() []nsKind {
	return []nsKind{
		{"net", unix.CLONE_NEWNET},
		{"uts", unix.CLONE_NEWUTS},
		{"ipc", unix.CLONE_NEWIPC},
		{"mnt", unix.CLONE_NEWNS},
	}
}

type nsKind struct {
	name string
	flag int
}

// join moves the calling thread, which must be locked, into pid's namespaces
// and to pid's root.
func join(pid int) error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare the working directory: %w", err)
	}
	// The magic link leads to the task's root by its own mount. It is opened before
	// the mount namespace changes, because afterwards /proc is the container's.
	root, err := os.OpenFile(fmt.Sprintf("/proc/%d/root", pid), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // an O_PATH descriptor has nothing to flush
	if err := actAsRoot(pid); err != nil {
		return err
	}
	for _, k := range enterKinds() {
		if err := joinOne(pid, k); err != nil {
			return err
		}
	}
	// setns(2) leaves root and working directory at the root of the mount
	// namespace; a task that was given another root by chroot(2) has less.
	if err := unix.Fchdir(int(root.Fd())); err != nil {
		return fmt.Errorf("change to its root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("take its root: %w", err)
	}
	return nil
}

// joinOne joins one namespace unless the thread is in it: setns(2) to the
// thread's own mount namespace would need privileges for nothing.
func joinOne(pid int, k nsKind) error {
	theirs, err := os.Open(nsPath(pid, k.name))
	if err != nil {
		return err
	}
	defer theirs.Close() //nolint:errcheck // opened to name a namespace only
	same, err := sameNS(theirs, "/proc/thread-self/ns/"+k.name)
	if err != nil || same {
		return err
	}
	if err := unix.Setns(int(theirs.Fd()), k.flag); err != nil {
		return fmt.Errorf("join its %s namespace: %w", k.name, err)
	}
	return nil
}

func sameNS(a *os.File, path string) (bool, error) {
	x, err := a.Stat()
	if err != nil {
		return false, err
	}
	y, err := os.Stat(path)
	if err != nil {
		return false, err
	}
	return os.SameFile(x, y), nil
}

func nsPath(pid int, kind string) string { return fmt.Sprintf("/proc/%d/ns/%s", pid, kind) }
