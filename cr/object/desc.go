package object

import (
	"fmt"
	"os"
	"strings"

	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/cr/procfs"

	"golang.org/x/sys/unix"
)

// deleted is what the kernel adds to the path of a file without a name.
const deleted = " (deleted)"

// Desc is one description as capture meets it: by a descriptor, by a link of
// /proc/PID (cwd, exe) or behind a mapping.
type Desc struct {
	PID     int    // in the container, for messages
	HostPID int    // ours
	FD      int    // -1 if there is no descriptor
	Link    string // what readlink says
	via     string // the link of /proc that leads to the object
	info    procfs.FDInfo
	stat    unix.Statx_t
	domain  int // SO_DOMAIN of a socket
}

// ProcRef names one process.
type ProcRef struct {
	HostPID int // in our pid namespace
	PID     int // in the container's
}

// look reads the link and what is behind it. It never asks a network or FUSE
// server: that may be a frozen task of this very container.
func look(p ProcRef, via string) (*Desc, error) {
	d := &Desc{PID: p.PID, HostPID: p.HostPID, FD: -1, via: via}
	var err error
	if d.Link, err = os.Readlink(via); err != nil {
		return nil, err
	}
	err = unix.Statx(unix.AT_FDCWD, via, unix.AT_STATX_DONT_SYNC, statxMask, &d.stat)
	if err != nil {
		return nil, fmt.Errorf("stat %s: %w", via, err)
	}
	return d, nil
}

const statxMask = unix.STATX_BASIC_STATS | unix.STATX_MNT_ID

// lookFD is look for a descriptor.
func lookFD(p ProcRef, fd int) (*Desc, error) {
	d, err := look(p, fmt.Sprintf("/proc/%d/fd/%d", p.HostPID, fd))
	if err != nil {
		return nil, err
	}
	d.FD = fd
	if d.info, err = procfs.ReadFDInfo(p.HostPID, fd); err != nil {
		return nil, err
	}
	if strings.HasPrefix(d.Link, "socket:[") {
		return d, d.askDomain()
	}
	return d, nil
}

// askDomain asks the socket itself: /proc says only that it is one.
func (d *Desc) askDomain() error {
	fd, err := d.get()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	d.domain, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	return err
}

// get duplicates the descriptor into our process: the very same description.
// The caller closes it and must not read, write or seek through it.
func (d *Desc) get() (int, error) {
	if d.FD < 0 {
		return -1, fmt.Errorf("%s has no descriptor: %w", d.Link, errs.ErrUnsupported)
	}
	pidfd, err := unix.PidfdOpen(d.HostPID, 0)
	if err != nil {
		return -1, fmt.Errorf("pidfd_open: %w", err)
	}
	defer unix.Close(pidfd)
	fd, err := unix.PidfdGetfd(pidfd, d.FD, 0)
	if err != nil {
		return -1, fmt.Errorf("pidfd_getfd: %w", err)
	}
	return fd, nil
}

// open opens the same inode anew, read only: a description of our own that can
// be read at will.
func (d *Desc) open() (*os.File, error) {
	return os.OpenFile(d.via, os.O_RDONLY|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
}

// flags are the status flags, without the descriptor's O_CLOEXEC.
func (d *Desc) flags() uint32 { return d.info.Flags &^ unix.O_CLOEXEC }

func (d *Desc) is(format uint16) bool { return d.stat.Mode&unix.S_IFMT == format }

func (d *Desc) dev() uint64 { return unix.Mkdev(d.stat.Dev_major, d.stat.Dev_minor) }

func (d *Desc) rdev() uint64 { return unix.Mkdev(d.stat.Rdev_major, d.stat.Rdev_minor) }

// path is the link without the kernel's mark, and whether the mark was there.
func (d *Desc) path() (string, bool) { return strings.CutSuffix(d.Link, deleted) }

// anon says whether the link is that of an anonymous inode of the given class.
func (d *Desc) anon(class string) bool { return d.Link == "anon_inode:["+class+"]" }

// obj names the description in messages.
func (d *Desc) obj() fmt.Stringer {
	if d.FD >= 0 {
		return errs.FD(d.FD)
	}
	return errs.Name(d.Link)
}

// wrap says whose description err is about.
func (d *Desc) wrap(err error) error {
	return &errs.Error{Op: "capture", PID: d.PID, Obj: d.obj(), Err: err}
}

// unsupported is a refusal: what the object is, and what to do about it.
func unsupported(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errs.ErrUnsupported, fmt.Sprintf(format, args...))
}
