package mem

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/remote"
	"github.com/stasis-cr/stasis/cr/sys"
)

// userfaultDevice makes userfaultfds for who may open it (Linux 6.1).
const userfaultDevice = "/dev/userfaultfd"

// OpenUserfault makes a userfaultfd of the address space of a stopped task that
// is ours, and takes it out: the task keeps no descriptor of it. It is
// non-blocking and has been asked for features, which are sys.UFFDEvent* and the
// like. The task needs no privilege.
//
// With sys.UFFDUserModeOnly in flags the task makes it by itself, which every
// task may: it stops faults of the program only, and a system call that needs a
// page which is missing fails with EFAULT. That is enough to fill memory before
// the task runs. Without it, an open /dev/userfaultfd is passed in through
// channel, so that the container need not be allowed to make one.
func OpenUserfault(
	ctx context.Context, own *remote.Owned, channel *remote.Channel, flags, features uint64,
) (_ *os.File, err error) {
	const mode = unix.O_CLOEXEC | unix.O_NONBLOCK
	var fd uint64
	if flags&sys.UFFDUserModeOnly != 0 {
		fd, err = own.Call(ctx, unix.SYS_USERFAULTFD, mode|flags)
	} else {
		fd, err = newUserfault(ctx, own, channel, mode|flags)
	}
	if err != nil {
		return nil, fmt.Errorf("userfaultfd: %w", err)
	}
	uffd, err := own.Take(remote.FD(fd), "userfaultfd")
	if _, e := own.Call(ctx, unix.SYS_CLOSE, fd); e != nil {
		err = errors.Join(err, fmt.Errorf("close userfaultfd: %w", e))
	}
	if err == nil {
		if _, err = sys.UFFDHandshake(uffd, features); err == nil {
			return uffd, nil
		}
		err = fmt.Errorf("userfaultfd with features %#x: %w", features, err)
	}
	if uffd != nil {
		err = errors.Join(err, uffd.Close())
	}
	return nil, err
}

// newUserfault makes one through the device. It returns the task's number of it.
func newUserfault(ctx context.Context, own *remote.Owned, channel *remote.Channel, flags uint64) (uint64, error) {
	device, err := os.OpenFile(userfaultDevice, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer device.Close() //nolint:errcheck // nothing was written
	fds, err := channel.Send(ctx, own, []*os.File{device})
	if err != nil {
		return 0, err
	}
	fd, err := own.Call(ctx, unix.SYS_IOCTL, uint64(fds[0]), sys.IoctlUFFDNew, flags)
	if _, e := own.Call(ctx, unix.SYS_CLOSE, uint64(fds[0])); e != nil {
		err = errors.Join(err, fmt.Errorf("close %s: %w", userfaultDevice, e))
	}
	return fd, err
}
