package object

import (
	"errors"
	"fmt"
	"slices"

	"github.com/stasis-cr/stasis/cr/sys"

	"golang.org/x/sys/unix"
)

// group holds the descriptions that look alike from outside. Only kcmp tells
// whether they are one, and only within a group can they be.
type group struct {
	link            string
	dev, ino, mntID uint64
	flags           uint32
}

// holder is one descriptor that stands for a description already known.
type holder struct {
	pid, fd int
	id      uint32 // 0: refused
}

// identities finds out which descriptors name one description.
type identities struct{ groups map[group][]holder }

// groupOf takes only what can't change while the task is stopped, and no position:
// a running task moves it between two looks.
func groupOf(d *Desc) group {
	return group{d.Link, d.dev(), d.stat.Ino, d.stat.Mnt_id, d.flags()}
}

// find returns the holder that has d's description and where in its group's list
// d belongs. Lists are in kcmp's order, so a group of n costs log n calls.
func (x *identities) find(d *Desc) (h *holder, at int, err error) {
	list := x.groups[groupOf(d)]
	at, found, err := search(len(list), func(i int) (int, error) {
		return sys.Kcmp(d.HostPID, list[i].pid, sys.KcmpFile, uint64(d.FD), uint64(list[i].fd))
	})
	if err != nil || !found {
		return nil, at, err
	}
	return &list[at], at, nil
}

// add enters a description at the place that find answered.
func (x *identities) add(d *Desc, at int, id uint32) {
	k := groupOf(d)
	x.groups[k] = slices.Insert(x.groups[k], at, holder{d.HostPID, d.FD, id})
}

// prune drops holders that vanished: a survey looks at running tasks.
func (x *identities) prune(d *Desc) {
	k := groupOf(d)
	x.groups[k] = slices.DeleteFunc(x.groups[k], func(h holder) bool {
		_, err := sys.Kcmp(h.pid, h.pid, sys.KcmpFile, uint64(h.fd), uint64(h.fd))
		return err != nil
	})
}

// search finds a place in a sorted list of n by cmp, which answers as kcmp does.
func search(n int, cmp func(i int) (int, error)) (at int, found bool, err error) {
	lo, hi := 0, n
	for lo < hi {
		mid := (lo + hi) / 2
		r, err := cmp(mid)
		switch {
		case err != nil:
			return 0, false, fmt.Errorf("kcmp: %w", err)
		case r == 0:
			return mid, true, nil
		case r == 1:
			hi = mid
		case r == 2:
			lo = mid + 1
		default: // kcmp(2): "not equal, but ordering information is unavailable"
			return 0, false, unsupported("kcmp on this kernel does not order objects")
		}
	}
	return lo, false, nil
}

// vanished says whether err means that a task or descriptor is no longer there.
func vanished(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EBADF)
}
