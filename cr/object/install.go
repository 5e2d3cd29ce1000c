package object

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/remote"

	"golang.org/x/sys/unix"
)

// Sender passes open files into a process; each arrives at the lowest number
// that is free there. Channel of package remote is one.
type Sender interface {
	Send(ctx context.Context, c remote.Caller, files []*os.File) ([]remote.FD, error)
	FD() remote.FD // of the process's own end
}

// perSend bounds how many descriptors are on their way at once: the kernel
// limits what may be in flight to RLIMIT_NOFILE (unix(7), ETOOMANYREFS).
const perSend = 100

// FreeFD answers the lowest number, 3 or above, that none of the tables uses: the
// place for a channel's own descriptor in all the processes.
func FreeFD(tables []*blob.FDTable) remote.FD {
	used := map[int32]bool{}
	for _, t := range tables {
		for _, fd := range t.Fds {
			used[fd.Fd] = true
		}
	}
	return remote.FD(lowest(used, 3))
}

func lowest(used map[int32]bool, from int32) int32 {
	for used[from] {
		from++
	}
	return from
}

// Install gives a process the descriptors of a table and closes all others but
// the channel's own.
//
// Preconditions: the table doesn't use the channel's number (see [FreeFD]), and
// the process's RLIMIT_NOFILE is above all numbers.
func (r *Restorer) Install(ctx context.Context, c remote.Caller, ch Sender, table *blob.FDTable) error {
	groups, err := plan(table.Fds, int32(ch.FD()), perSend)
	if err != nil {
		return err
	}
	if err := closeOthers(ctx, c, ch.FD()); err != nil {
		return err
	}
	for _, g := range groups {
		if err := r.place(ctx, c, ch, g); err != nil {
			return err
		}
	}
	return nil
}

// move is one descriptor's way: received at slot, wanted at target.
type move struct {
	slot, target int32
	file         uint32
	cloexec      bool
}

// plan foretells where each descriptor arrives. In every group, those whose
// number is among the slots are sent so that they arrive in place; the targets
// of the others are free then, so the order of moving them does not matter.
func plan(fds []*blob.FD, at int32, size int) ([][]move, error) {
	fds = slices.Clone(fds)
	slices.SortFunc(fds, func(a, b *blob.FD) int { return cmp.Compare(a.Fd, b.Fd) })
	used := map[int32]bool{at: true}
	for i, fd := range fds {
		if fd.Fd < 0 || i > 0 && fds[i-1].Fd == fd.Fd {
			return nil, corrupt("descriptor %d is twice in a table", fd.Fd)
		}
		if fd.Fd == at {
			return nil, fmt.Errorf("descriptor %d is the channel's", at)
		}
	}
	var groups [][]move
	for g := range slices.Chunk(fds, size) {
		groups = append(groups, planGroup(g, used))
		for _, fd := range g {
			used[fd.Fd] = true
		}
	}
	return groups, nil
}

// planGroup knows the slots before it says who gets them: the lowest free numbers,
// one for each descriptor of the group.
func planGroup(g []*blob.FD, used map[int32]bool) []move {
	moves := make([]move, len(g)) // by slot
	at := map[int32]int{}
	next := int32(0)
	for i := range moves {
		next = lowest(used, next)
		moves[i].slot, at[next] = next, i
		next++
	}
	fill := func(i int, fd *blob.FD) {
		moves[i].target, moves[i].file, moves[i].cloexec = fd.Fd, fd.File, fd.Cloexec
	}
	free := 0
	for _, fd := range g {
		if i, ok := at[fd.Fd]; ok {
			fill(i, fd)
		}
	}
	for _, fd := range g {
		if _, ok := at[fd.Fd]; ok {
			continue
		}
		for moves[free].file != 0 {
			free++
		}
		fill(free, fd)
	}
	return moves
}

// closeOthers closes everything but the descriptor at.
func closeOthers(ctx context.Context, c remote.Caller, at remote.FD) error {
	calls := []remote.Call{
		{NR: unix.SYS_CLOSE_RANGE, Args: [6]uint64{uint64(at) + 1, 1<<32 - 1}},
	}
	if at > 0 {
		calls = append(calls, remote.Call{NR: unix.SYS_CLOSE_RANGE, Args: [6]uint64{0, uint64(at) - 1}})
	}
	return batch(ctx, c, calls)
}

// batch makes calls in a task; the first that fails is the error.
func batch(ctx context.Context, c remote.Caller, calls []remote.Call) error {
	if len(calls) == 0 {
		return nil
	}
	if err := c.Batch(ctx, calls); err != nil {
		return err
	}
	for i := range calls {
		if _, err := calls[i].Result(); err != nil {
			return fmt.Errorf("remote call %d %#x: %w", calls[i].NR, calls[i].Args[:3], err)
		}
	}
	return nil
}

// place sends one group and moves what did not arrive in place.
func (r *Restorer) place(ctx context.Context, c remote.Caller, ch Sender, g []move) error {
	files := make([]*os.File, len(g))
	for i, m := range g {
		var err error
		if files[i], err = r.Open(ctx, m.file); err != nil {
			return fmt.Errorf("fd %d: %w", m.target, err)
		}
	}
	got, err := ch.Send(ctx, c, files)
	if err != nil {
		return err
	}
	calls := make([]remote.Call, 0, 2*len(g))
	for i, m := range g {
		if i >= len(got) || int32(got[i]) != m.slot {
			return fmt.Errorf("fd %d arrived at %v, not at %d", m.target, got, m.slot)
		}
		calls = append(calls, m.calls()...)
	}
	return batch(ctx, c, calls)
}

// calls finish a descriptor that has arrived. Close-on-exec is the descriptor's, so
// it is said here and not by the sender.
func (m move) calls() []remote.Call {
	if m.slot == m.target {
		flag := uint64(0)
		if m.cloexec {
			flag = unix.FD_CLOEXEC
		}
		return []remote.Call{{NR: unix.SYS_FCNTL, Args: [6]uint64{uint64(m.slot), unix.F_SETFD, flag}}}
	}
	flag := uint64(0)
	if m.cloexec {
		flag = unix.O_CLOEXEC
	}
	return []remote.Call{
		{NR: unix.SYS_DUP3, Args: [6]uint64{uint64(m.slot), uint64(m.target), flag}},
		{NR: unix.SYS_CLOSE, Args: [6]uint64{uint64(m.slot)}},
	}
}
