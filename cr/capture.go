package cr

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/blob/dir"
	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/cr/fault"
	"github.com/stasis-cr/stasis/cr/mem"
	"github.com/stasis-cr/stasis/cr/object"
	"github.com/stasis-cr/stasis/cr/task"
	"github.com/stasis-cr/stasis/namespaces"
)

// capturer turns a frozen container into an image.
type capturer struct {
	f        *frozen
	o        *CheckpointOptions
	pre      *precopy
	flags    *mapFlags
	host     *blob.Host // this machine; the clocks are not those of the freeze yet
	img      *blob.Image
	saver    *mem.Saver
	objects  *object.Capture
	filters  *task.Filters
	contents *contents
	pids     map[int]int32 // container pids by host pid
	tids     map[int]int32 // container tids by host tid
}

// capture records everything of a frozen container. Memory is copied by s.saver's
// workers while the records are made; when it returns nothing is read any more,
// neither from tasks nor from files, but the pages may still have to be written.
func capture(ctx context.Context, f *frozen, s *still, flags *mapFlags, host *blob.Host) (_ *blob.Image, err error) {
	c := &capturer{
		f: f, o: s.o, pre: s.pre, flags: flags, host: host, saver: s.saver, filters: task.NewFilters(nil), img: &blob.Image{},
		pids: map[int]int32{}, tids: map[int]int32{},
	}
	c.contents = &contents{saver: s.saver, img: c.img, shared: map[sharedKey]uint32{}}
	defer func() { err = errors.Join(err, c.contents.close()) }()
	for _, p := range f.processes {
		c.pids[p.hostPID] = int32(containerPID(&p.status))
		for _, t := range p.threads {
			c.tids[t.TID] = int32(containerPID(&t.Status))
		}
	}
	c.objects = newObjects(f.c, s.o, c.contents, func(host int) int { return int(c.pids[host]) }, false)
	defer func() { err = errors.Join(err, c.objects.Close()) }()

	if err := c.all(ctx, s.image); err != nil {
		return nil, errors.Join(err, s.saver.Close()) // the files that it reads are closed next
	}
	if err := s.saver.Read(); err != nil {
		return nil, err
	}
	for _, n := range c.objects.Notes() {
		s.log.Warn("not saved", slog.String("what", n))
	}
	return c.img, nil
}

func newObjects(c *container, o *CheckpointOptions, pages object.ContentWriter, pid func(int) int, survey bool) *object.Capture {
	return object.NewCapture(object.Env{
		InitPID: c.initPID, Externals: c.externals, Terminal: c.spec != nil && c.spec.Process != nil && c.spec.Process.Terminal,
		Pages: pages, Enter: namespaces.Enter, ContainerPID: pid,
		FileLocks: o.FileLocks, ExtUnixSk: o.ExtUnixSk, Survey: survey,
	})
}

// all records the tasks on this thread, which traces them, and meanwhile the
// namespaces on another.
func (c *capturer) all(ctx context.Context, image *dir.Writer) error {
	group, gctx := errgroup.WithContext(ctx)
	group.Go(func() error { return c.namespaces(gctx, image) })
	err := c.tasks(ctx)
	if err := errors.Join(err, group.Wait()); err != nil {
		return err
	}
	return fault.Point("captured-namespaces")
}

func (c *capturer) tasks(ctx context.Context) error {
	c.facts()
	for i, p := range c.f.processes {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if err := c.process(ctx, p, i == 0); err != nil {
			return &errs.Error{Op: "capture", PID: int(c.pids[p.hostPID]), Err: err}
		}
		if err := fault.Point("captured-process"); err != nil {
			return err
		}
	}
	if err := c.jobs(ctx); err != nil {
		return err
	}
	var err error
	if c.img.Files, c.img.FDTables, err = c.objects.Finish(ctx); err != nil {
		return err
	}
	c.img.Seccomp = c.filters.Record()
	return fault.Point("captured-files")
}

// jobs asks the parents of stopped processes whether they know of the stop.
func (c *capturer) jobs(ctx context.Context) error {
	for i, p := range c.f.processes {
		rec := c.img.Processes[i]
		if rec.State != blob.Process_STATE_STOPPED || rec.Ppid == 0 {
			continue
		}
		for _, parent := range c.f.processes {
			if parent.hostPID != p.hostPPID || len(parent.threads) == 0 {
				continue
			}
			var err error
			if rec.StopIsNews, err = task.StopIsNews(ctx, parent.threads[0], rec.Pid); err != nil {
				return &errs.Error{Op: "capture", PID: int(rec.Ppid), Err: err}
			}
		}
	}
	return nil
}

// facts records what is known of the machine and of the container as a whole.
func (c *capturer) facts() {
	c.img.Host = c.host
	c.host.CreatedNs = c.f.since.UnixNano()
	c.host.MonotonicNs, c.host.BoottimeNs = clock(unix.CLOCK_MONOTONIC), clock(unix.CLOCK_BOOTTIME)
	c.img.Container = &blob.Container{
		Id: c.f.c.id, Runtime: filepath.Base(c.f.c.runtime), Externals: c.f.c.externals,
		TcpEstablished: c.o.TCPEstablished, FileLocks: c.o.FileLocks, ExtUnixSk: c.o.ExtUnixSk, ShellJob: c.o.ShellJob,
	}
}

func (c *capturer) process(ctx context.Context, p *process, init bool) error {
	if p.zombie {
		rec, err := task.CaptureZombie(p.hostPID)
		if err != nil {
			return err
		}
		rec.Ppid = c.pids[p.hostPPID]
		c.img.Processes = append(c.img.Processes, rec)
		return nil
	}
	ref := object.ProcRef{HostPID: p.hostPID, PID: int(c.pids[p.hostPID])}
	mm := &blob.MM{Id: uint32(len(c.img.MMs) + 1)}
	rec, err := task.CaptureProcess(ctx, p.hostPID, p.threads, c.filters, mm)
	if err != nil {
		return err
	}
	if init {
		recordProfile(c.img.Container, c.f.c.spec, rec)
		if c.img.Container.NsLastPid, err = task.LastPID(ctx, p.threads[0]); err != nil {
			return err
		}
		if c.img.Container.Console, err = c.captureConsole(p); err != nil {
			return err
		}
	} else {
		rec.Ppid = c.pids[p.hostPPID]
	}
	for _, t := range rec.Timers {
		t.Tid = c.tids[int(t.Tid)]
	}
	if p.stopSignal != 0 {
		rec.State, rec.StopSignal = blob.Process_STATE_STOPPED, uint32(p.stopSignal)
	}
	if err := c.files(ctx, ref, rec); err != nil {
		return err
	}
	if err := c.memory(ctx, ref, mm); err != nil {
		return err
	}
	rec.Mm = mm.Id
	c.img.Host.Xfeatures |= task.XFeatures(rec.Threads[0].Xstate)
	c.img.MMs = append(c.img.MMs, mm)
	c.img.Processes = append(c.img.Processes, rec)
	return nil
}

func (c *capturer) files(ctx context.Context, ref object.ProcRef, rec *blob.Process) (err error) {
	if rec.FdTable, rec.Locks, err = c.objects.Table(ctx, ref); err != nil {
		return err
	}
	if rec.Fs.Cwd, err = c.objects.Path(ctx, ref, "cwd"); err != nil {
		return err
	}
	rec.Fs.Root, err = c.objects.Path(ctx, ref, "root")
	return err
}

func (c *capturer) memory(ctx context.Context, ref object.ProcRef, mm *blob.MM) error {
	maps, err := c.flags.mappings(ref.HostPID)
	if err != nil {
		return err
	}
	if err := describeMM(ctx, ref, maps, mm, c.objects, c.contents); err != nil {
		return err
	}
	return c.saver.AddressSpace(ref.HostPID, mm, len(c.f.processes) > 1, c.pre.tracker(ref.HostPID))
}

// namespaces records the namespaces and packs the tmpfs mounts.
func (c *capturer) namespaces(ctx context.Context, image *dir.Writer) error {
	ns, err := namespaces.Describe(ctx, c.f.c.initPID)
	if err != nil {
		return err
	}
	c.img.Namespaces = ns
	for i, t := range ns.Tmpfs {
		t.Archive = fmt.Sprintf("tmpfs-%d.tar", i+1)
		f, err := image.Create(t.Archive)
		if err != nil {
			return err
		}
		w := &summer{w: f}
		if err := namespaces.SaveTmpfs(ctx, c.f.c.initPID, t.Mountpoint, w); err != nil {
			return err
		}
		t.Size, t.Crc = w.size, w.crc
	}
	return nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// summer counts and sums what passes through it.
type summer struct {
	w    io.Writer
	size uint64
	crc  uint32
}

func (s *summer) Write(b []byte) (int, error) {
	n, err := s.w.Write(b)
	s.size += uint64(n)
	s.crc = crc32.Update(s.crc, castagnoli, b[:n])
	return n, err
}

// contents stores the bytes of files without a name: object.ContentWriter.
type contents struct {
	saver  *mem.Saver
	img    *blob.Image
	shared map[sharedKey]uint32 // shared memory by inode
	open   []*os.File
}

type sharedKey struct {
	dev string
	ino uint64
}

// Write stores size bytes of r, an *os.File, which the caller may close at once.
func (c *contents) Write(_ context.Context, r io.ReaderAt, size int64) (uint32, error) {
	f, ok := r.(*os.File)
	if !ok {
		return 0, fmt.Errorf("contents of a %T: %w", r, errs.ErrUnsupported)
	}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("duplicate %s: %w", f.Name(), err)
	}
	dup := os.NewFile(uintptr(fd), f.Name())
	c.open = append(c.open, dup)
	rec := &blob.Contents{Id: uint32(len(c.img.Contents) + 1), Size: uint64(size)}
	c.img.Contents = append(c.img.Contents, rec)
	return rec.Id, c.saver.File(dup, rec)
}

func (c *contents) close() error {
	var all error
	for _, f := range c.open {
		all = errors.Join(all, f.Close())
	}
	c.open = nil
	return all
}

// hostFacts says what this machine is.
func hostFacts() (*blob.Host, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return nil, fmt.Errorf("uname: %w", err)
	}
	digest, err := mem.VdsoDigest()
	if err != nil {
		return nil, err
	}
	return &blob.Host{
		Machine: unix.ByteSliceToString(u.Machine[:]), KernelRelease: unix.ByteSliceToString(u.Release[:]),
		PageSize: uint32(os.Getpagesize()), VdsoDigest: digest, EngineVersion: Version,
		MonotonicNs: clock(unix.CLOCK_MONOTONIC), BoottimeNs: clock(unix.CLOCK_BOOTTIME), CgroupVersion: cgroupVersion(),
	}, nil
}

func clock(id int32) uint64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(id, &ts); err != nil {
		return 0
	}
	return uint64(ts.Nano())
}
