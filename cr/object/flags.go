package object

import (
	"errors"
	"fmt"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/sys"

	"golang.org/x/sys/unix"
)

// oLargeFile is the kernel's O_LARGEFILE on x86-64: it shows in F_GETFL although
// the C library's constant is 0.
const oLargeFile = 0o100000

// openFlags may be given to open(2) when a description is made anew. The kernel
// keeps no others in f_flags (fs/open.c, do_dentry_open), but an image may claim
// anything: O_CREAT or O_TRUNC must not get through.
const openFlags = unix.O_ACCMODE | unix.O_APPEND | unix.O_DSYNC | unix.O_SYNC | unix.O_DIRECT | oLargeFile |
	unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_NOATIME | unix.O_PATH

// statusFlags can be changed by F_SETFL (fs/fcntl.c, SETFL_MASK); O_ASYNC needs
// an owner first and comes with it.
const statusFlags = unix.O_APPEND | unix.O_NONBLOCK | unix.O_DIRECT | unix.O_NOATIME

// setStatus makes the changeable flags of fd what the record says.
func setStatus(fd int, flags uint32) error {
	now, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return fmt.Errorf("F_GETFL: %w", err)
	}
	want := now&^statusFlags | int(flags)&statusFlags
	if want == now {
		return nil
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, want); err != nil {
		return fmt.Errorf("F_SETFL %#o: %w", want, err)
	}
	return nil
}

// owner asks who gets SIGIO for a description; nil if nobody does.
func (c *Capture) owner(d *Desc) (*blob.Owner, error) {
	if d.FD < 0 || d.info.Flags&unix.O_PATH != 0 { // O_PATH: fcntl(2) allows no owner
		return nil, nil
	}
	fd, err := d.get()
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	o, err := sys.GetOwner(fd)
	if err != nil {
		return nil, fmt.Errorf("F_GETOWN_EX: %w", err)
	}
	signal, err := unix.FcntlInt(uintptr(fd), unix.F_GETSIG, 0)
	if err != nil {
		return nil, fmt.Errorf("F_GETSIG: %w", err)
	}
	if o.PID == 0 && signal == 0 {
		return nil, nil
	}
	r := &blob.Owner{Type: o.Type, Signal: int32(signal)}
	if o.PID == 0 {
		return r, nil
	}
	r.Pid = int32(c.env.ContainerPID(int(o.PID)))
	if r.Pid == 0 && !c.env.Survey {
		return nil, unsupported("its SIGIO goes to task %d, which is no process of the container", o.PID)
	}
	return r, nil
}

// own puts the owner back and, last, O_ASYNC.
func (r *Restorer) own(fd int, f *blob.File) error {
	if o := f.GetOwner(); o != nil {
		if err := r.setOwner(fd, o); err != nil {
			return err
		}
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETSIG, int(o.Signal)); err != nil {
			return fmt.Errorf("F_SETSIG: %w", err)
		}
	}
	if f.Flags&unix.O_ASYNC == 0 || f.Flags&unix.O_PATH != 0 {
		return nil
	}
	now, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, now|unix.O_ASYNC)
	}
	if err != nil {
		return fmt.Errorf("O_ASYNC: %w", err)
	}
	return nil
}

// setOwner names the process that the signals go to; none is nothing to do.
func (r *Restorer) setOwner(fd int, o *blob.Owner) error {
	if o.Pid == 0 {
		return nil
	}
	host := r.env.HostPID(int(o.Pid))
	if host == 0 {
		return fmt.Errorf("owner %d is not a restored process", o.Pid)
	}
	if err := sys.SetOwner(fd, sys.FOwner{Type: o.Type, PID: int32(host)}); err != nil {
		return fmt.Errorf("F_SETOWN_EX: %w", err)
	}
	return nil
}

// seek sets the position of a file or directory; other objects have none.
func seek(fd int, pos uint64) error {
	if pos == 0 {
		return nil
	}
	if _, err := unix.Seek(fd, int64(pos), unix.SEEK_SET); err != nil && !errors.Is(err, unix.ESPIPE) {
		return fmt.Errorf("seek to %d: %w", pos, err)
	}
	return nil
}

// reopen opens the inode behind fd anew, which makes a new description with
// exactly these flags. It works for inodes without a name, and whatever process
// the thread shares its namespaces with, as long as /proc is ours.
func reopen(fd int, flags uint32) (int, error) {
	how := unix.OpenHow{Flags: uint64(flags&openFlags&^unix.O_NOFOLLOW) | unix.O_CLOEXEC}
	if flags&unix.O_PATH == 0 {
		how.Flags |= unix.O_NOCTTY
	}
	n, err := unix.Openat2(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), &how)
	if err != nil {
		return -1, fmt.Errorf("open with flags %#o: %w", flags, err)
	}
	return n, nil
}
