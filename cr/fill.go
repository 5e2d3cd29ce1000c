package cr

import (
	"context"
	"errors"
	"log/slog"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/fault"
	"github.com/stasis-cr/stasis/cr/mem"
	"github.com/stasis-cr/stasis/cr/remote"
	"github.com/stasis-cr/stasis/cr/sys"
)

// fill puts every page where it belongs, then locks and seals.
func (r *restorer) fill(ctx context.Context) error {
	var wanting []*member
	for _, m := range r.alive() {
		if !m.filled {
			wanting = append(wanting, m)
		}
	}
	if err := r.fillMembers(ctx, wanting, r.shared); err != nil {
		return err
	}
	var calls []remote.Call
	for _, s := range r.shared {
		calls = append(calls, remote.Call{NR: unix.SYS_MUNMAP, Args: [6]uint64{uint64(s.at), s.size}})
	}
	if err := batch(ctx, r.members[1].own, calls); err != nil {
		return err
	}
	if err := r.closeShared(); err != nil {
		return err
	}
	return r.together(ctx, r.alive(), func(ctx context.Context, m *member) error {
		var calls []remote.Call
		for _, v := range m.mm.Vmas {
			calls = append(calls, mem.SealCalls(v)...)
		}
		return batch(ctx, m.own, calls)
	})
}

func (r *restorer) closeShared() error {
	var all error
	for _, s := range r.shared {
		all = errors.Join(all, s.file.Close())
	}
	clear(r.shared)
	return all
}

// filling is one run over the page store for some members.
type filling struct {
	r       *restorer
	plan    *mem.Plan
	targets []*mem.TaskTarget
	members []*member // of the first targets
	small   []*member // those that huge pages are kept from for the while
}

// fillMembers gives members what their memory lacks. With shared, which is
// mapped in init, it fills that, too.
func (r *restorer) fillMembers(ctx context.Context, members []*member, shared map[uint32]*sharedMemory) (err error) {
	f := &filling{r: r, plan: mem.NewPlan(r.img.Pages), members: members}
	defer func() { err = errors.Join(err, f.close()) }()
	for _, m := range members {
		if err := f.add(m.hostPID, m.lacks.extents); err != nil {
			return err
		}
	}
	for _, s := range shared {
		if err := f.add(r.members[1].hostPID, s.want); err != nil {
			return err
		}
	}
	if err := f.prepare(ctx); err != nil {
		return err
	}
	if err := fault.Point("restore-filling"); err != nil {
		return err
	}
	stop := watch(ctx, r.o.Progress, "memory", f.plan.Progress)
	err = f.plan.Fill(ctx, r.pages)
	stop()
	if err != nil {
		return err
	}
	for _, m := range members {
		m.filled, m.lacks = true, lack{}
	}
	return f.allowHuge(ctx)
}

func (f *filling) add(hostPID int, extents []*blob.Extent) error {
	t, err := mem.NewTaskTarget(hostPID)
	if err != nil {
		return err
	}
	f.targets = append(f.targets, t)
	f.plan.Want(extents, t)
	return nil
}

// prepare makes the huge pages that there were, and sees to it that filling makes
// no others: what had few pages in it must not grow.
func (f *filling) prepare(ctx context.Context) error {
	huge := map[*mem.TaskTarget][]*blob.Huge{}
	for i, m := range f.members {
		if len(m.lacks.huge) > 0 {
			huge[f.targets[i]] = m.lacks.huge
		}
	}
	if err := mem.MakeHuge(ctx, huge); err != nil {
		return err
	}
	return f.r.together(ctx, f.members, func(ctx context.Context, m *member) error {
		if mem.MayGrowHuge(m.mm.Vmas, m.lacks.extents) {
			if err := forbidHuge(ctx, m, true); err != nil {
				return err
			}
			f.small = append(f.small, m)
		}
		f.watch(ctx, m, f.targets[slices.Index(f.members, m)])
		return nil
	})
}

// allowHuge ends that. Who does not want huge pages says so later, with the rest
// of its state.
func (f *filling) allowHuge(ctx context.Context) error {
	return f.r.together(ctx, f.small, func(ctx context.Context, m *member) error { return forbidHuge(ctx, m, false) })
}

func forbidHuge(ctx context.Context, m *member, yes bool) error {
	var arg uint64
	if yes {
		arg = 1
	}
	_, err := m.own.Call(ctx, unix.SYS_PRCTL, unix.PR_SET_THP_DISABLE, arg, 0, 0, 0)
	if errors.Is(err, unix.EINVAL) { // a kernel without huge pages
		return nil
	}
	return wrap("prctl PR_SET_THP_DISABLE", err)
}

// watch has a userfaultfd fill the memory of a member, where that pays and the
// kernel can: it is faster, not better.
func (f *filling) watch(ctx context.Context, m *member, target *mem.TaskTarget) {
	regions := mem.Watchable(m.lacks.fresh, m.lacks.extents, m.lacks.huge)
	if len(regions) == 0 {
		return
	}
	uffd, err := mem.OpenUserfault(ctx, m.own, f.r.channel, sys.UFFDUserModeOnly, 0)
	if err != nil {
		f.r.log.Debug("memory is filled without a userfaultfd", slog.Int("pid", int(m.rec.Pid)), slog.Any("why", err))
		return
	}
	target.Watch(uffd, regions, m.lacks.huge)
}

func (f *filling) close() error {
	var all error
	for _, t := range f.targets {
		all = errors.Join(all, t.Close())
	}
	return all
}
