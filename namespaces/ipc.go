package namespaces

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/stasis-cr/stasis/cr/errs"
	"golang.org/x/sys/unix"
)

// checkIPC names the System V objects and POSIX message queues in the private
// IPC namespace of the task pid, each as an error: the engine can't save them. In
// an IPC namespace that is the host's, nobody can say whose they are; what tasks
// use of those shows in their mappings and descriptors.
func checkIPC(_ context.Context, pid int) (refused []error) {
	private, err := Private(pid, "ipc")
	if err == nil && private {
		err = within(pid, nsKind{"ipc", unix.CLONE_NEWIPC}, func() error {
			refused = append(sysvObjects("/proc/sysvipc"), messageQueues()...)
			return nil
		})
	}
	if err != nil {
		refused = append(refused, err)
	}
	return refused
}

// sysvObjects reads one table per kind. The kernel answers for the IPC namespace
// of the thread that opens one (ipc/util.c, sysvipc_proc_open).
func sysvObjects(dir string) (refused []error) {
	for _, kind := range []struct{ file, name string }{
		{"shm", "shared memory segment"}, {"sem", "semaphore set"}, {"msg", "message queue"},
	} {
		f, err := os.Open(dir + "/" + kind.file)
		if errors.Is(err, os.ErrNotExist) { // a kernel without CONFIG_SYSVIPC
			continue
		}
		if err != nil {
			return append(refused, err)
		}
		refused = append(refused, sysvTable(f, kind.name)...)
		if err := f.Close(); err != nil {
			refused = append(refused, err)
		}
	}
	return refused
}

// sysvTable reads a table of /proc/sysvipc: a heading, then a line per object
// that begins with its key and its id (proc(5)).
func sysvTable(r io.Reader, name string) (refused []error) {
	lines := bufio.NewScanner(r)
	for first := true; lines.Scan(); first = false {
		field := strings.Fields(lines.Text())
		if first || len(field) < 2 {
			continue
		}
		refused = append(refused, fmt.Errorf("system V %s %s (key %s): %w", name, field[1], field[0], errs.ErrUnsupported))
	}
	if err := lines.Err(); err != nil {
		refused = append(refused, fmt.Errorf("system V %s table: %w", name, err))
	}
	return refused
}

// messageQueues lists the POSIX message queues of the thread's IPC namespace
// through a mount of its own that no namespace ever sees: the container need not
// have one at /dev/mqueue.
func messageQueues() (refused []error) {
	dir, err := mountDetached("mqueue")
	if errors.Is(err, unix.ENODEV) { // a kernel without CONFIG_POSIX_MQUEUE
		return nil
	}
	if err != nil {
		return []error{fmt.Errorf("list POSIX message queues: %w", err)}
	}
	names, err := dir.Readdirnames(-1)
	for _, name := range names {
		refused = append(refused, fmt.Errorf("POSIX message queue /%s: %w", name, errs.ErrUnsupported))
	}
	if err = errors.Join(err, dir.Close()); err != nil {
		refused = append(refused, fmt.Errorf("list POSIX message queues: %w", err))
	}
	return refused
}

// mountDetached mounts a file system without options nowhere and returns its
// root; closing it unmounts.
func mountDetached(fstype string) (*os.File, error) {
	config, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer unix.Close(config) // the configuration is used up
	if err := unix.FsconfigCreate(config); err != nil {
		return nil, err
	}
	mount, err := unix.Fsmount(config, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY)
	if err != nil {
		return nil, err
	}
	defer unix.Close(mount) // the directory opened below holds the mount
	fd, err := unix.Openat(mount, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOATIME, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), fstype), nil
}
