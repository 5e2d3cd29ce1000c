package cr

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"time"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/blob/dir"
	"github.com/stasis-cr/stasis/cr/fault"
	"github.com/stasis-cr/stasis/cr/mem"
	"github.com/stasis-cr/stasis/cr/procfs"
	"github.com/stasis-cr/stasis/cr/undo"
)

// PagesFile is the page store's name in the image directory. What is written beside it
// of a large one is in pages-2.img and so on.
const PagesFile = "pages.img"

// pagesFiles are the names of all files that a page store may be spread over.
func pagesFiles() []string {
	names := []string{PagesFile}
	for n := 2; n <= mem.Files(); n++ {
		names = append(names, fmt.Sprintf("pages-%d.img", n))
	}
	return names
}

// Checkpoint writes a running or paused container into an image directory. With
// LeaveRunning the container goes on in the state in which it was; otherwise it
// is ended and the OCI runtime's record of it removed. On an error the container
// goes on as before and no image is left under a final name.
func Checkpoint(ctx context.Context, o CheckpointOptions) (stats Stats, err error) {
	runtime.LockOSThread() // every ptrace call comes from here; never unlocked
	moreThreads()
	takeBallast()
	begin := time.Now()
	log := logger(o.Log)
	o.LeaveRunning = o.LeaveRunning || o.PreDump
	codec, err := o.codec()
	if err != nil {
		return stats, err
	}
	c, err := findContainer(ctx, &o)
	if err != nil {
		return stats, err
	}
	if err := awaitFilled(ctx, o.Root, o.ID, log); err != nil {
		return stats, err
	}
	if refusals, err := survey(ctx, c, &o); err != nil || len(refusals) > 0 {
		return stats, errors.Join(append([]error{err}, refusals...)...)
	}
	log.Info("surveyed", slog.String("id", c.id), slog.Duration("took", time.Since(begin)))
	if err := fault.Point("surveyed"); err != nil {
		return stats, err
	}
	s := &still{c: c, o: &o, log: log}
	defer func() { err = errors.Join(err, s.pre.close()) }() // the container need not wait for it
	img, err := s.save(ctx, codec)
	if err != nil {
		return stats, err
	}
	if o.follows() {
		if err := s.pre.keepOn(ctx, c, o.ImageDir); err != nil { // the checkpoint is whole
			log.Warn("the next checkpoint will be a full one", slog.Any("err", err))
		}
	}
	stats.Frozen, stats.Held = s.frozen, s.pre.held
	stats.count(img)
	stats.ImageBytes, err = treeSize(o.ImageDir)
	stats.Total = time.Since(begin)
	log.Info("checkpointed", slog.Duration("frozen", stats.Frozen), slog.Duration("held_back", stats.Held), slog.Duration("total", stats.Total),
		slog.Int("tasks", stats.Tasks), slog.Int("threads", stats.Threads),
		slog.Int64("image_bytes", stats.ImageBytes), slog.Int64("pages_bytes", stats.PagesBytes))
	return stats, err
}

// save copies what it can while the container runs, takes the picture and makes
// the image visible. Then the container goes on, or has ended.
func (s *still) save(ctx context.Context, codec blob.Chunk_Codec) (_ *blob.Image, err error) {
	var u undo.Stack
	defer u.Run(ctx, &err)
	if s.image, err = dir.Create(s.o.ImageDir); err != nil {
		return nil, err
	}
	u.Add(func(context.Context) error { return s.image.Abort() })
	pages, err := s.createPages()
	if err != nil {
		return nil, err
	}
	before, err := openParent(s.o, s.c.kept, s.log)
	if err != nil {
		return nil, err
	}
	s.store = mem.NewStore(pages[0], mem.StoreOptions{Codec: codec, Parent: before.store(), More: pages[1:]})
	if s.pre, err = startPrecopy(ctx, s.c, s.o, before, s.store, s.log); err != nil {
		return nil, err
	}
	if err := fault.Point("precopied"); err != nil {
		return nil, err
	}
	f, img, err := s.picture(ctx, &u)
	if err != nil {
		return nil, err
	}
	if s.o.LeaveRunning && !s.o.follows() {
		s.pre.closeBehind()
	}
	if err := fault.Point("released"); err != nil {
		return nil, err
	}
	if err := s.commit(ctx, img); err != nil {
		return nil, err
	}
	u.Keep()
	u.Add(f.release) // the image stays, whatever goes wrong from here on
	if err := fault.Point("committed"); err != nil {
		return nil, err
	}
	if !s.o.LeaveRunning {
		if err := s.handOver(ctx, f); err != nil {
			return nil, err
		}
		s.frozen = time.Since(f.since)
		if err := end(ctx, f); err != nil {
			return nil, err
		}
	}
	u.Keep()
	return img, nil
}

// createPages makes the files of the page store.
func (s *still) createPages() (files []*os.File, err error) {
	for _, name := range pagesFiles() {
		f, err := s.image.Create(name)
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

// index is the record of the page store, and gives up the files that it does not need.
func (s *still) index() (*blob.PageStore, error) {
	names := pagesFiles()
	index := s.store.Index(names[0], names[1:]...)
	for _, unused := range names[1+len(index.More):] {
		if err := s.image.Discard(unused); err != nil {
			return nil, err
		}
	}
	return index, nil
}

// commit makes the image visible when its pages are in the store.
func (s *still) commit(ctx context.Context, img *blob.Image) (err error) {
	if err := s.stored(ctx); err != nil {
		return err
	}
	if err := fault.Point("stored"); err != nil {
		return err
	}
	img.Container.LeftRunning = s.o.LeaveRunning
	if img.Pages, err = s.index(); err != nil {
		return err
	}
	img.Prune()
	return s.image.Commit(img)
}

// still takes the picture of a container that stands still.
type still struct {
	c      *container
	o      *CheckpointOptions
	image  *dir.Writer
	store  *mem.Store
	pre    *precopy
	log    *slog.Logger
	saver  *mem.Saver    // of the last picture
	frozen time.Duration // that the container stood still
}

// picture freezes the container and captures it. One that is left running goes
// on before picture returns; u learns how to let it go on in any case. The second
// try is for a container that was changing its mappings' flags at the first.
func (s *still) picture(ctx context.Context, u *undo.Stack) (*frozen, *blob.Image, error) {
	host, err := hostFacts() // what takes long of them is the same afterwards
	if err != nil {
		return nil, nil, err
	}
	for _, exact := range []bool{!s.o.LeaveRunning, true} {
		saver := mem.NewSaver(ctx, s.store, mem.SaverOptions{Hurry: s.o.LeaveRunning})
		s.saver = saver
		u.Add(func(context.Context) error { return saver.Close() })
		s.pre.letRun() // not for long
		f, err := freeze(ctx, s.c, s.log)
		if err != nil {
			return nil, nil, err
		}
		u.Add(f.release)
		s.log.Info("frozen", slog.Int("tasks", len(f.processes)), slog.Duration("took", time.Since(f.since)))
		flags := &mapFlags{before: s.c.maps, exact: exact, taken: map[int][]procfs.SMap{}}
		img, err := s.capture(ctx, f, flags, host)
		if err != nil || !s.o.LeaveRunning {
			return f, img, err
		}
		if err := f.release(ctx); err != nil { // from here on it waits neither for a compressor nor for the disk
			return nil, nil, err
		}
		s.frozen += time.Since(f.since)
		if flags.confirmed() {
			return f, img, nil
		}
		s.log.Info("mappings changed their flags around the freeze: once more, exactly")
		if err := s.discard(img); err != nil {
			return nil, nil, err
		}
	}
	return nil, nil, errors.New("unreachable: exact flags are always confirmed")
}

func (s *still) capture(ctx context.Context, f *frozen, flags *mapFlags, host *blob.Host) (*blob.Image, error) {
	stop := s.watch(ctx)
	defer stop()
	img, err := capture(ctx, f, s, flags, host)
	if err != nil {
		return nil, err
	}
	return img, fault.Point("captured")
}

// discard gives up a picture.
func (s *still) discard(img *blob.Image) error {
	err := s.saver.Close()
	for _, space := range s.pre.spaces {
		space.tracker.Discarded()
	}
	for _, t := range img.Namespaces.GetTmpfs() {
		err = errors.Join(err, s.image.Discard(t.Archive))
	}
	return err
}

// stored waits until the pages of the picture are in the store.
func (s *still) stored(ctx context.Context) error {
	stop := s.watch(ctx)
	defer stop()
	return s.saver.Wait()
}

func (s *still) watch(ctx context.Context) (stop func()) {
	return s.o.watch(ctx, "memory", func() (int64, int64) { return s.store.Size(), 0 })
}

// end ends a container whose image is complete, as runc checkpoint does: its
// tasks, its cgroup and the runtime's record.
func end(ctx context.Context, f *frozen) error {
	if err := f.kill(); err != nil {
		return fmt.Errorf("the image is complete, but: %w", err)
	}
	if err := fault.Point("ended"); err != nil {
		return err
	}
	if _, err := f.c.run(ctx, "delete", "--force", f.c.id); err != nil {
		return fmt.Errorf("the image is complete and the container ended, but: %w", err)
	}
	return nil
}

func (s *Stats) count(img *blob.Image) {
	s.Tasks = len(img.Processes)
	for _, p := range img.Processes {
		s.Threads += len(p.Threads)
	}
	s.PagesBytes = int64(img.Pages.OwnSize())
}

// treeSize adds up the files of a flat directory.
func treeSize(path string) (int64, error) {
	entries, err := os.ReadDir(path)
	if err != nil {
		return 0, err
	}
	var n int64
	for _, e := range entries {
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() {
			n += info.Size()
		}
	}
	return n, nil
}

// progressEvery is how often a caller hears of progress.
const progressEvery = 100 * time.Millisecond

// watch reports progress until the function that it returns is called.
func (o *CheckpointOptions) watch(ctx context.Context, phase string, now func() (int64, int64)) (stop func()) {
	return watch(ctx, o.Progress, phase, now)
}

func watch(ctx context.Context, report func(Progress), phase string, now func() (int64, int64)) (stop func()) {
	if report == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(progressEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				done, total := now()
				report(Progress{phase, done, total})
			case <-ctx.Done():
				return
			}
		}
	}()
	return func() { // any number of times
		cancel()
		<-ended
	}
}
