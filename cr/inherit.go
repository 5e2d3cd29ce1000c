package cr

import (
	"context"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/fault"
	"github.com/stasis-cr/stasis/cr/mem"
	"github.com/stasis-cr/stasis/cr/remote"
)

// inheritance is what a newborn gets of its parent's memory: nothing if one of
// them is a helper or a zombie, or if they run different programs.
func inheritance(parent, child *member) *mem.Inheritance {
	if parent.mm == nil || child.mm == nil || parent.exe != parent.mm.Exe || child.mm.Exe != parent.exe {
		return nil
	}
	return mem.Inherit(parent.mm, child.mm)
}

// complete finishes the memory of a member ahead of all others, because a child
// is to inherit it.
func (r *restorer) complete(ctx context.Context, m *member) error {
	if m.filled {
		return nil
	}
	for _, each := range []*member{r.members[1], m} { // init first: see mapMember
		if err := r.mapMember(ctx, each, nil); err != nil {
			return err
		}
	}
	return r.fillMembers(ctx, []*member{m}, nil)
}

// bearHeir forks parent. The newborn has no more of its memory than in says: to
// copy page tables that it has no use for takes longer than to say so.
func bearHeir(ctx context.Context, parent *member, in *mem.Inheritance, signal uint64) (*remote.Owned, int, error) {
	var kept, others []mem.Region
	if in != nil {
		kept = mem.RegionsOf(in.Kept)
	}
	if parent.mapped {
		others = mem.Unforked(parent.mm, kept)
	}
	if err := batch(ctx, parent.own, mem.AdviseCalls(others, unix.MADV_DONTFORK)); err != nil {
		return nil, 0, err
	}
	own, pid, err := bear(ctx, parent.own, signal)
	if err != nil {
		return nil, 0, err
	}
	return own, pid, batch(ctx, parent.own, mem.AdviseCalls(others, unix.MADV_DOFORK))
}

// settle turns what a newborn inherited into its own mappings, and gives back the
// pages that it has not.
func (r *restorer) settle(ctx context.Context, m *member, in *mem.Inheritance) error {
	if err := r.mapMember(ctx, m, in); err != nil {
		return err
	}
	if err := batch(ctx, m.own, mem.AdviseCalls(in.Drop, unix.MADV_DONTNEED)); err != nil {
		return err
	}
	return fault.Point("restore-inherited")
}
