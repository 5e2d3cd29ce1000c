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
	"github.com/stasis-cr/stasis/cr/undo"
)

// pagesFile is the page store's name in the image directory.
const pagesFile = "pages.img"

// Checkpoint writes a running or paused container into an image directory. With
// LeaveRunning the container goes on in the state in which it was; otherwise it
// is ended and the OCI runtime's record of it removed. On an error the container
// goes on as before and no image is left under a final name.
func Checkpoint(ctx context.Context, o CheckpointOptions) (_ Stats, err error) {
	runtime.LockOSThread() // every ptrace call comes from here; never unlocked
	begin := time.Now()
	log := logger(o.Log)
	var stats Stats

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

	var u undo.Stack
	defer u.Run(ctx, &err)
	image, err := dir.Create(o.ImageDir)
	if err != nil {
		return stats, err
	}
	u.Add(func(context.Context) error { return image.Abort() })
	pages, err := image.Create(pagesFile)
	if err != nil {
		return stats, err
	}
	store := mem.NewStore(pages)

	f, err := freeze(ctx, c, log)
	if err != nil {
		return stats, err
	}
	u.Add(f.release)
	log.Info("frozen", slog.Int("tasks", len(f.processes)), slog.Duration("took", time.Since(f.since)))

	stop := o.watch(ctx, "memory", func() (int64, int64) { return store.Size(), 0 })
	img, err := capture(ctx, f, &o, image, store)
	stop()
	if err != nil {
		return stats, err
	}
	if err := fault.Point("captured"); err != nil {
		return stats, err
	}
	img.Container.LeftRunning = o.LeaveRunning
	img.Pages = store.Index(pagesFile)
	if o.LeaveRunning {
		// From here on the container does not wait for the disk.
		if err := f.release(ctx); err != nil {
			return stats, err
		}
		stats.Frozen = time.Since(f.since)
	}
	if err := fault.Point("released"); err != nil {
		return stats, err
	}
	if err := image.Commit(img); err != nil {
		return stats, err
	}
	u.Keep()
	u.Add(f.release) // the image stays, whatever goes wrong from here on
	if err := fault.Point("committed"); err != nil {
		return stats, err
	}
	if !o.LeaveRunning {
		stats.Frozen = time.Since(f.since)
		if err := end(ctx, f); err != nil {
			return stats, err
		}
	}
	u.Keep()
	stats.count(img)
	stats.ImageBytes, err = treeSize(o.ImageDir)
	stats.Total = time.Since(begin)
	log.Info("checkpointed", slog.Duration("frozen", stats.Frozen), slog.Duration("total", stats.Total),
		slog.Int("tasks", stats.Tasks), slog.Int("threads", stats.Threads),
		slog.Int64("image_bytes", stats.ImageBytes), slog.Int64("pages_bytes", stats.PagesBytes))
	return stats, err
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
	s.PagesBytes = int64(img.Pages.GetSize())
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
	return func() {
		cancel()
		<-ended
	}
}
