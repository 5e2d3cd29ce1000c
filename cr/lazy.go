package cr

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/blob/dir"
	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/cr/lazy"
	"github.com/stasis-cr/stasis/cr/mem"
	"github.com/stasis-cr/stasis/cr/sys"
	"github.com/stasis-cr/stasis/cr/undo"
)

// lazily is a restore that fills most memory later. A nil one fills all of it
// before.
type lazily struct {
	session *lazy.Session
	parts   map[uint32]*lazyPart // by id of the address space
}

// lazyPart is what is filled later and before of one address space.
type lazyPart struct {
	space   int // its number in the plan, if anything is watched
	watched []mem.Region
	eager   []*blob.Extent
}

// eagerPages is up to how many pages a mapping is filled before: a fault costs as
// much.
const eagerPages = 16

// startLazy starts whoever fills memory later, beside the launch of the
// container. It answers nil if that is not asked for or pays nothing, or if this
// kernel can't do it.
func startLazy(o *RestoreOptions, image *dir.Dir, pages *openedPages, log *slog.Logger, u *undo.Stack) (_ *lazily, err error) {
	if !o.LazyPages {
		return nil, nil //nolint:nilnil // nil is a lazily
	}
	if why := lazy.Supported(); why != nil {
		log.Warn("memory is filled before the container goes on: this kernel can't do it later", slog.Any("why", why))
		return nil, nil //nolint:nilnil // likewise
	}
	img := image.Image()
	l, plan := planLazy(img)
	if len(plan.Spaces) == 0 {
		return nil, nil //nolint:nilnil // likewise
	}
	if len(pages.files) > lazy.MostStores {
		log.Warn("memory is filled before the container goes on: it lies in too many files", slog.Int("stores", len(pages.files)))
		return nil, nil //nolint:nilnil // likewise
	}
	plan.LogDir = o.WorkDir
	if plan.LogDir == "" {
		plan.LogDir = o.ImageDir
	}
	plan.Remote = pages.remote
	files := lazy.Files{Stores: pages.files}
	if files.Dir, err = os.Open(o.ImageDir); err != nil {
		return nil, err
	}
	defer files.Dir.Close() //nolint:errcheck // read only
	if files.Record, err = makeRecord(ownName("lazy", o.Root, o.ID)); err != nil {
		return nil, err
	}
	defer files.Record.Close() //nolint:errcheck // nothing is written
	if l.session, err = lazy.Start(plan, files); err != nil {
		return nil, errors.Join(err, os.Remove(files.Record.Name()))
	}
	u.Add(func(context.Context) error { return l.session.Abort() })
	return l, nil
}

// planLazy decides what is filled when.
func planLazy(img *blob.Image) (*lazily, *lazy.Plan) {
	l := &lazily{parts: map[uint32]*lazyPart{}}
	plan := &lazy.Plan{Store: img.Pages, Image: img.Host.CreatedNs}
	mms := map[uint32]*blob.MM{}
	for _, m := range img.MMs {
		mms[m.Id] = m
	}
	for _, p := range img.Processes {
		m := mms[p.Mm]
		if m == nil {
			continue
		}
		part, pieces := splitLazy(m)
		l.parts[m.Id] = part
		if len(part.watched) > 0 {
			part.space = len(plan.Spaces)
			s := lazy.PlanSpace{PID: p.Pid, Pieces: pieces}
			for _, w := range part.watched {
				s.Watched = append(s.Watched, lazy.Piece{Start: w.Start, End: w.End})
			}
			plan.Spaces = append(plan.Spaces, s)
		}
	}
	return l, plan
}

// splitLazy sorts the extents of an address space. Mappings are watched as a
// whole, though they may have pages that were never touched: to watch a part
// splits a mapping, and mremap(2) refuses a range of two.
func splitLazy(m *blob.MM) (*lazyPart, []lazy.Piece) {
	part := &lazyPart{}
	var pieces []lazy.Piece
	rest := m.Extents
	for _, v := range m.Vmas {
		n, pages := 0, uint64(0)
		for n < len(rest) && rest[n].Start < v.End {
			pages += uint64(min(rest[n].Pages, uint32((v.End-rest[n].Start)/mem.PageSize)))
			n++
		}
		crosses := n > 0 && extentEnd(rest[n-1]) > v.End
		if later(v) && pages > eagerPages && !crosses {
			part.watched = append(part.watched, mem.Region{Start: v.Start, End: v.End})
			for _, e := range rest[:n] {
				pieces = append(pieces, lazy.Piece{Start: e.Start, End: extentEnd(e), Chunk: e.Chunk, Page: e.Page})
			}
		} else {
			part.eager = append(part.eager, rest[:n]...)
		}
		rest = rest[n:]
	}
	part.eager = append(part.eager, rest...)
	return part, pieces
}

func extentEnd(e *blob.Extent) uint64 { return e.Start + uint64(e.Pages)*mem.PageSize }

// later says whether the pages of v may come while the program runs. Locked
// memory promises that no fault waits; a child does not inherit the pages of
// MADV_WIPEONFORK, of which no event tells; a stack is needed at once; and pages of
// the pool are made by the program alone.
func later(v *blob.VMA) bool {
	const not = blob.VMAFlag_VMA_LOCKED | blob.VMAFlag_VMA_LOCKONFAULT |
		blob.VMAFlag_VMA_WIPEONFORK | blob.VMAFlag_VMA_GROWSDOWN | blob.VMAFlag_VMA_HUGETLB
	return v.Kind == blob.VMA_ANON && !v.Shared && v.Flags&uint64(not) == 0
}

// before is what a member lacks when the container goes on. Huge pages of what is
// filled later come as small ones: the kernel may join them again.
func (l *lazily) before(m *blob.MM) lack {
	if l == nil {
		return lack{m.Extents, m.Huge, m.Vmas}
	}
	part := l.parts[m.Id]
	huge := slices.DeleteFunc(slices.Clone(m.Huge), func(h *blob.Huge) bool {
		return slices.ContainsFunc(part.watched, func(w mem.Region) bool { return w.Start <= h.Start && h.Start < w.End })
	})
	return lack{part.eager, huge, m.Vmas}
}

// watch hands over what is filled later. From then on a fault there is served,
// also one of the restore's own calls in the tasks.
func (r *restorer) watch(ctx context.Context) error {
	if r.lazy == nil {
		return nil
	}
	if err := r.lazy.session.Init(r.b.pid); err != nil {
		return err
	}
	if err := r.watchSpaces(ctx); err != nil {
		return err
	}
	return wrap("lazy pages", r.lazy.session.Serve())
}

// watchedSpace is an address space of a member whose faults come to us.
type watchedSpace struct {
	pid  int
	uffd *os.File
}

// watchSpaces watches all address spaces, and hands them over in their order.
func (r *restorer) watchSpaces(ctx context.Context) (err error) {
	waiting := map[int]watchedSpace{} // for those before them
	defer func() {
		for _, w := range waiting {
			err = errors.Join(err, w.uffd.Close())
		}
	}()
	next := 0
	return r.together(ctx, r.alive(), func(ctx context.Context, m *member) error {
		part := r.lazy.parts[m.mm.Id]
		if len(part.watched) == 0 {
			return nil
		}
		uffd, err := r.watchSpace(ctx, m, part)
		if err != nil {
			return err
		}
		waiting[part.space] = watchedSpace{m.hostPID, uffd}
		for w, ok := waiting[next]; ok; w, ok = waiting[next] {
			if err := r.lazy.session.Watch(next, w.pid, w.uffd); err != nil {
				return err
			}
			delete(waiting, next)
			next++
			if err := w.uffd.Close(); err != nil {
				return err
			}
		}
		return nil
	})
}

func (r *restorer) watchSpace(ctx context.Context, m *member, part *lazyPart) (*os.File, error) {
	uffd, err := mem.OpenUserfault(ctx, m.own, r.channel, 0, lazy.Features)
	if err != nil {
		return nil, err
	}
	for _, w := range part.watched {
		if err := sys.UFFDRegister(uffd, w.Start, w.End, sys.UFFDMissing); err != nil {
			err = &errs.Error{Obj: errs.Range(w), Err: fmt.Errorf("watch: %w", err)}
			return nil, errors.Join(err, uffd.Close())
		}
	}
	return uffd, nil
}

// begin lets the memory be filled on its own from now on.
func (l *lazily) begin() error {
	if l == nil {
		return nil
	}
	return wrap("lazy pages", l.session.Go())
}

func (l *lazily) close() error {
	if l == nil {
		return nil
	}
	return l.session.Close()
}

// makeRecord makes the file that tells that a container is lazy: it is locked as
// long as guard or server lives. One that is there is another's, and loses its
// name.
func makeRecord(path string) (_ *os.File, err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("record of lazy pages: %w", err)
	}
	temp := fmt.Sprintf("%s.%d", path, os.Getpid())
	f, err := os.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("record of lazy pages: %w", err)
	}
	if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("record of lazy pages: %w", err), f.Close(), os.Remove(temp))
	}
	return f, nil
}

// filledPause is the time between two looks at a record.
const filledPause = 2 * time.Millisecond

// awaitFilled waits until all memory of a container that was restored lazily is
// there: pages that are missing can't be saved.
func awaitFilled(ctx context.Context, root, id string, log *slog.Logger) error {
	f, err := os.Open(ownName("lazy", root, id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("record of lazy pages: %w", err)
	}
	defer f.Close() //nolint:errcheck // read only
	begin := time.Now()
	if err := awaitLock(ctx, f, unix.LOCK_SH); err != nil {
		return fmt.Errorf("record of lazy pages: %w", err)
	}
	log.Info("lazy pages are there", slog.Duration("waited", time.Since(begin)))
	return nil
}

// AwaitFilled waits until all memory of a container that was restored lazily is
// there, or the container has ended.
func AwaitFilled(ctx context.Context, root, id string) error {
	return awaitFilled(ctx, root, id, logger(nil))
}
