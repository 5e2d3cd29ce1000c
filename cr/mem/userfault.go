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
	var uffd *os.File
	if flags&sys.UFFDUserModeOnly != 0 {
		uffd, err = takeNew(ctx, own, remote.Call{NR: unix.SYS_USERFAULTFD, Args: [6]uint64{mode | flags}})
	} else {
		uffd, err = newUserfault(ctx, own, channel, mode|flags)
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

// newUserfault makes one through the device, and takes it out.
func newUserfault(ctx context.Context, own *remote.Owned, channel *remote.Channel, flags uint64) (*os.File, error) {
	device, err := os.OpenFile(userfaultDevice, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("userfaultfd: %w", err)
	}
	defer device.Close() //nolint:errcheck // nothing was written
	fds, err := channel.Send(ctx, own, []*os.File{device})
	if err != nil {
		return nil, fmt.Errorf("userfaultfd: %w", err)
	}
	call := remote.Call{NR: unix.SYS_IOCTL, Args: [6]uint64{uint64(fds[0]), sys.IoctlUFFDNew, flags}}
	return takeNew(ctx, own, call, closing(uint64(fds[0])))
}

// takeNew makes a call that answers a userfaultfd, takes it out, and has the task
// close it with what else is to be done then.
func takeNew(ctx context.Context, own *remote.Owned, call remote.Call, after ...remote.Call) (uffd *os.File, err error) {
	fd, err := own.Call(ctx, call.NR, call.Args[:]...)
	if err == nil {
		uffd, err = own.Take(remote.FD(fd), "userfaultfd")
		after = append(after, closing(fd))
	}
	if err != nil {
		err = fmt.Errorf("userfaultfd: %w", err)
	}
	if len(after) == 0 {
		return uffd, err
	}
	err = errors.Join(err, own.Batch(ctx, after))
	for i := range after {
		if _, e := after[i].Result(); e != nil {
			err = errors.Join(err, fmt.Errorf("userfaultfd: close: %w", e))
		}
	}
	return uffd, err
}

func closing(fd uint64) remote.Call {
	return remote.Call{NR: unix.SYS_CLOSE, Args: [6]uint64{fd}}
}
