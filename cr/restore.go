package cr

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/blob/dir"
	"github.com/stasis-cr/stasis/cr/fault"
	"github.com/stasis-cr/stasis/cr/mem"
	"github.com/stasis-cr/stasis/cr/pageserver"
	"github.com/stasis-cr/stasis/cr/task"
	"github.com/stasis-cr/stasis/cr/undo"
	"github.com/stasis-cr/stasis/namespaces"
)

// Restore makes a container with the OCI runtime from an unmodified bundle and
// turns it into the one that an image holds. Detached, it returns when the
// container goes on, with exit 0; else it stays and returns the container's own
// exit status. On an error nothing is left of the container.
func Restore(ctx context.Context, o RestoreOptions) (exit int, err error) {
	runtime.LockOSThread() // every ptrace call comes from here; never unlocked
	moreThreads()
	takeBallast()
	begin := time.Now()
	log := logger(o.Log)
	gate, err := joinGate(&o)
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, gate.close()) }()
	ctx, cancel := gate.watch(ctx)
	defer cancel()
	client, err := fetch(ctx, &o, log)
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	image, err := openImage(&o)
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, image.Close()) }()
	img := image.Image()
	if err := checkHost(img, log); err != nil {
		return 1, err
	}
	pages, err := openSource(ctx, &o, image, client)
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, pages.close()) }()
	steps, err := task.Grow(img.Processes)
	if err != nil {
		return 1, err
	}
	if !o.Detach && !o.NoSubreaper {
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
			return 1, fmt.Errorf("become a subreaper: %w", err)
		}
	}
	if err := fault.Point("checked"); err != nil {
		return 1, err
	}
	init, err := restore(ctx, &o, image, pages, steps, gate, log)
	if err != nil {
		return 1, err
	}
	log.Info("restored", slog.String("id", o.ID), slog.Int("pid", init), slog.Duration("took", time.Since(begin)))
	if o.Detach {
		return 0, nil
	}
	return waitExit(init)
}

// restore builds the container and lets it go, or leaves nothing. It returns
// init's host pid.
func restore(ctx context.Context, o *RestoreOptions, image *dir.Dir, pages *openedPages, steps []task.Step, gate *gated, log *slog.Logger) (init int, err error) {
	var u undo.Stack
	defer u.Run(ctx, &err)
	begin := time.Now()
	later, err := startLazy(o, image, pages, log, &u)
	if err != nil {
		return 0, err
	}
	b, err := launch(ctx, o, &u)
	if err != nil {
		return 0, err
	}
	log.Info("launched", slog.Int("pid", b.pid), slog.Duration("took", time.Since(begin)))
	r, err := newRestorer(ctx, o, image, pages.Pages, b, steps, log)
	if err != nil {
		return 0, err
	}
	r.lazy = later
	defer func() { err = errors.Join(err, r.close()) }() //nolint:contextcheck // also when ctx has ended
	for _, phase := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"namespaces", r.namespaces},
		{"grow", func(ctx context.Context) error { return r.grow(ctx, steps) }},
		{"map", r.mapAll},
		{"fill", r.fill},
		{"watch", r.watch},
		{"files", r.installAll},
		{"threads", r.threads},
		{"state", r.state},
		{"zombies", r.zombies},
		{"finish", r.finish},
		{"leave", r.leave},
	} {
		start := time.Now()
		if err := phase.run(ctx); err != nil {
			return 0, err
		}
		log.Debug("phase", slog.String("name", phase.name), slog.Duration("took", time.Since(start)))
		if err := fault.Point("restore-" + phase.name); err != nil {
			return 0, err
		}
	}
	if err := gate.pass(ctx); err != nil {
		return 0, err
	}
	if err := writePidFile(o.PidFile, b.pid); err != nil {
		return 0, err
	}
	u.Add(func(context.Context) error { return removePidFile(o.PidFile) })
	// From here on it is an ordinary container, which nobody may clean away.
	if err := b.claim.drop(); err != nil {
		return 0, err
	}
	if err := fault.Point("restore-releasing"); err != nil {
		return 0, err
	}
	if err := r.lazy.begin(); err != nil {
		return 0, err
	}
	if err := r.release(ctx); err != nil {
		return 0, err
	}
	u.Keep()
	return b.pid, r.lazy.close()
}

// namespaces puts back what changed in the namespaces since the runtime made
// them, before anything is opened in them.
func (r *restorer) namespaces(ctx context.Context) error {
	ns := r.img.Namespaces
	if refusals := namespaces.CheckRestore(ctx, r.b.pid, ns); len(refusals) > 0 {
		return errors.Join(refusals...)
	}
	if err := namespaces.Restore(ctx, r.b.pid, ns); err != nil {
		return err
	}
	for _, t := range ns.GetTmpfs() {
		if err := r.tmpfs(ctx, t); err != nil {
			return fmt.Errorf("tmpfs %s: %w", t.Mountpoint, err)
		}
	}
	return nil
}

func (r *restorer) tmpfs(ctx context.Context, t *blob.Tmpfs) error {
	f, err := r.image.Open(t.Archive)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // read only
	if err := checkSum(f, t); err != nil {
		return err
	}
	return namespaces.RestoreTmpfs(ctx, r.b.pid, t.Mountpoint, f)
}

// openedPages are the pages of an image with the files that they lie in.
type openedPages struct {
	*mem.Pages
	files  []*os.File
	remote pageserver.Remote // who has them, if there are no files
}

// openPages opens the page store of an image and those of earlier checkpoints
// that it needs.
func openPages(image *dir.Dir) (*openedPages, error) {
	return openFiles(image, image.Stores)
}

func openFiles(image *dir.Dir, open func() ([]*os.File, error)) (*openedPages, error) {
	files, err := open()
	if err != nil {
		return nil, err
	}
	stores := make([]io.ReaderAt, len(files))
	for i, f := range files {
		stores[i] = f
	}
	return &openedPages{Pages: mem.OpenPages(image.Image().Pages, stores...), files: files}, nil
}

func (p *openedPages) close() error {
	var all error
	for _, f := range p.files {
		if f != nil {
			all = errors.Join(all, f.Close())
		}
	}
	return all
}

// waitExit waits for a child and returns its status as a shell would.
func waitExit(pid int) (int, error) {
	for {
		var ws unix.WaitStatus
		_, err := unix.Wait4(pid, &ws, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return 1, fmt.Errorf("wait for init %d: %w", pid, err)
		case ws.Signaled():
			return 128 + int(ws.Signal()), nil
		default:
			return ws.ExitStatus(), nil
		}
	}
}

// removePidFile takes back what writePidFile wrote.
func removePidFile(path string) error {
	if path == "" {
		return nil
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("pid file: %w", err)
	}
	return nil
}

// writePidFile writes it complete or not at all.
func writePidFile(path string, pid int) error {
	if path == "" {
		return nil
	}
	tmp := path + ".stasis"
	if err := os.WriteFile(tmp, fmt.Appendf(nil, "%d", pid), 0o644); err != nil { // as runc's
		return fmt.Errorf("pid file: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return errors.Join(fmt.Errorf("pid file: %w", err), os.Remove(tmp))
	}
	return nil
}
