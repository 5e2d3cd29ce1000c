package cr

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/cr/fault"
	"github.com/stasis-cr/stasis/cr/mem"
	"github.com/stasis-cr/stasis/cr/procfs"
	"github.com/stasis-cr/stasis/cr/remote"
	"github.com/stasis-cr/stasis/cr/sys"
)

// followAll begins to follow the processes that it pays to follow.
func (p *precopy) followAll(ctx context.Context, c *container, o *CheckpointOptions, family []int) error {
	if o.NoPrecopy && !o.follows() {
		return nil
	}
	for _, pid := range p.candidates(c, family, o.follows()) {
		err := p.follow(ctx, c, pid)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
			p.log.Warn("this kernel can't tell what a process writes: its memory is copied while it stands still", slog.Any("err", err))
			return nil
		}
		if err != nil && !errors.Is(err, errs.ErrGone) && !vanished(err) {
			return fmt.Errorf("follow the memory of process %d: %w", pid, err)
		}
	}
	for pid, s := range p.spaces {
		if s.based {
			continue
		}
		s.size = int64(resident(c.maps[pid]))
		p.size += s.size
	}
	return p.each(func(s *space) error {
		if s.based {
			return nil
		}
		return s.tracker.Protect()
	})
}

// candidates lists the processes of which it pays to follow more than is followed
// already. With all set, small ones are worth it, too.
func (p *precopy) candidates(c *container, family []int, all bool) []int {
	least, total := uint64(precopySpace), uint64(0)
	if all {
		least = precopyRest
	}
	var pids []int
	for _, pid := range family {
		st, err := procfs.ReadStatus(pid)
		if err != nil || st.RSSAnon < least || p.spaces[pid] != nil && p.spaces[pid].news(c.maps[pid]) < least {
			continue // it has ended
		}
		if pinned(pid) {
			p.log.Warn("a process that reads past the page cache is copied while it stands still", slog.Int("pid", containerPID(&st)))
			continue
		}
		total += st.RSSAnon
		pids = append(pids, pid)
	}
	if total < precopyLeast && !all {
		return nil
	}
	return pids
}

// news is how much there is in private anonymous mappings that are not watched,
// in bytes.
func (s *space) news(maps []procfs.SMap) (bytes uint64) {
	for i := range maps {
		m := &maps[i]
		kind, skip, err := vmaKind(m)
		if err == nil && !skip && kind == blob.VMA_ANON && !s.tracker.Watches(m.Start, m.End) {
			bytes += m.RSS
		}
	}
	return bytes
}

// pinned says whether a process may have memory that changes without a fault:
// what O_DIRECT reads into it arrives by DMA, after the page was looked up. (The
// rings of io_uring and AIO are refused altogether.)
func pinned(pid int) bool {
	fds, err := procfs.ReadFDs(pid)
	return err != nil || slices.ContainsFunc(fds, func(fd int) bool {
		info, err := procfs.ReadFDInfo(pid, fd)
		return err == nil && info.Flags&unix.O_DIRECT != 0
	})
}

// follow begins to follow one process, or what it has mapped since it is
// followed. It stands still for that: a mapping must be watched as a whole, for
// one that is watched in part is two, which mremap(2) does not take for one.
func (p *precopy) follow(ctx context.Context, c *container, pid int) (err error) {
	f, err := freezeOne(ctx, c, pid, p.log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.release(ctx)) }()
	s := p.spaces[pid]
	if s == nil {
		uffd, err := f.lendUserfault(ctx, pid)
		if err != nil {
			return err
		}
		if err := fault.Point("precopy-lent"); err != nil {
			return errors.Join(err, uffd.Close())
		}
		t, err := mem.NewTracker(pid, uffd)
		if err != nil {
			return err
		}
		s = &space{tracker: t}
		p.spaces[pid] = s
	}
	maps, err := procfs.ReadMaps(pid)
	if err != nil {
		return err
	}
	return s.watch(maps, c.maps[pid])
}

// watch watches the private anonymous mappings that are known to hold anything.
// Precondition: the process stands still.
func (s *space) watch(maps []procfs.Mapping, known []procfs.SMap) error {
	for _, m := range maps {
		was := inPlace(m, known)
		holds := uint64(0)
		for i := range was {
			if kind, skip, err := vmaKind(&was[i]); err == nil && !skip && kind == blob.VMA_ANON {
				holds += was[i].RSS + was[i].Swap
			}
		}
		if holds == 0 {
			continue
		}
		if err := s.tracker.Watch(m.Start, m.End); err != nil {
			return err
		}
	}
	return nil
}

// lendUserfault makes a userfaultfd of the memory of a process that was stopped.
// One for faults in user mode needs no privilege there, and WP_ASYNC serves
// those of the kernel all the same.
func (f *frozen) lendUserfault(ctx context.Context, pid int) (*os.File, error) {
	leader := f.attached[pid]
	if leader == nil || leader.gone {
		return nil, errs.ErrGone
	}
	v, err := remote.Visit(ctx, leader.Task, remote.VisitOptions{})
	if err != nil {
		return nil, err
	}
	uffd, err := v.Lend(ctx, remote.Call{
		NR: unix.SYS_USERFAULTFD, Args: [6]uint64{unix.O_CLOEXEC | unix.O_NONBLOCK | sys.UFFDUserModeOnly},
	}, "userfaultfd")
	if e := v.Close(ctx); e != nil {
		if uffd != nil {
			e = errors.Join(e, uffd.Close())
		}
		return nil, errors.Join(err, e)
	}
	return uffd, err
}
