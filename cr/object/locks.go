package object

import (
	"fmt"
	"math"
	"strings"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/procfs"

	"golang.org/x/sys/unix"
)

// lockKey tells locks apart. A POSIX lock belongs to a process and an inode, the
// others to a description; fdinfo shows a lock under each number it is held by.
type lockKey struct {
	kind       blob.FileLock_Kind
	owner      uint64 // process, or description
	dev, ino   uint64
	start, end uint64
}

// locks reads the locks on d that its process or its description holds, and that
// were not met before.
func (c *Capture) locks(d *Desc, id uint32) ([]*blob.FileLock, error) {
	var locks []*blob.FileLock
	for i := range d.info.Locks {
		l, err := fileLock(&d.info.Locks[i])
		if err != nil {
			return nil, err
		}
		if !c.env.FileLocks {
			return nil, unsupported("it holds a file lock (%s) on %s: allow that with --file-locks", l.Kind, d.Link)
		}
		k := lockKey{l.Kind, uint64(id), d.dev(), d.stat.Ino, l.Start, l.End}
		if l.Kind == blob.FileLock_POSIX {
			k.owner = uint64(d.HostPID)
		}
		if c.locked[k] {
			continue
		}
		c.locked[k] = true
		l.Fd, l.File = int32(d.FD), id
		locks = append(locks, l)
	}
	return locks, nil
}

// fileLock translates what fdinfo says; leases and delegations are no locks.
func fileLock(p *procfs.Lock) (*blob.FileLock, error) {
	l := &blob.FileLock{Write: p.Type == "WRITE", Start: p.Start}
	switch p.Kind {
	case "FLOCK":
		l.Kind = blob.FileLock_FLOCK
	case "POSIX":
		l.Kind = blob.FileLock_POSIX
	case "OFDLCK":
		l.Kind = blob.FileLock_OFD
	default:
		return nil, unsupported("a %s on a file", strings.ToLower(p.Kind))
	}
	if p.Type != "WRITE" && p.Type != "READ" {
		return nil, unsupported("a file lock of type %s", p.Type)
	}
	if p.End != procfs.LockToEnd {
		l.End = p.End + 1
	}
	return l, nil
}

// flock fills struct flock for a byte range lock.
func flock(l *blob.FileLock) (unix.Flock_t, error) {
	t := unix.Flock_t{Type: unix.F_RDLCK, Whence: unix.SEEK_SET, Start: int64(l.Start)}
	if l.Write {
		t.Type = unix.F_WRLCK
	}
	if l.Start > math.MaxInt64 || l.End > math.MaxInt64 || l.End != 0 && l.End <= l.Start {
		return t, fmt.Errorf("lock of bytes %d to %d: %w", l.Start, l.End, unix.EINVAL)
	}
	if l.End != 0 {
		t.Len = int64(l.End - l.Start)
	}
	return t, nil
}

// lock takes a lock that belongs to the description, from our side.
func lock(fd int, l *blob.FileLock) error {
	if l.Kind == blob.FileLock_FLOCK {
		how := unix.LOCK_SH
		if l.Write {
			how = unix.LOCK_EX
		}
		if err := unix.Flock(fd, how|unix.LOCK_NB); err != nil {
			return fmt.Errorf("flock: %w", err)
		}
		return nil
	}
	t, err := flock(l)
	if err != nil {
		return err
	}
	if err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &t); err != nil {
		return fmt.Errorf("F_OFD_SETLK: %w", err)
	}
	return nil
}
