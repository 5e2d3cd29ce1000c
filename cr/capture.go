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
	"runtime"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/blob/dir"
	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/cr/fault"
	"github.com/stasis-cr/stasis/cr/mem"
	"github.com/stasis-cr/stasis/cr/object"
	"github.com/stasis-cr/stasis/cr/procfs"
	"github.com/stasis-cr/stasis/cr/remote"
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

// taking is a process that is being recorded, from two sides at once: its threads
// are asked by the one that traces them, while another looks at what /proc shows.
type taking struct {
	p   *process
	rec *blob.Process
	mm  *blob.MM // nil: a zombie

	known   chan struct{} // closed when the mappings have been listed: a visit adds one for a while
	vdso    remote.Range  // one of them
	asking  int           // threads that are being asked
	asked   int           // threads that have been asked
	visited chan struct{} // closed when all have
}

// How many threads are asked at a time. They run on other CPUs than we do, so a few
// do to keep us busy. Each needs a slot in its process's vdso, of which there may be
// no more than these.
const (
	atOnce          = 4
	atOnceOfProcess = 2
)

// all records the tasks on this thread, which traces them, and meanwhile what else
// there is to know on others. Processes that job control has stopped are asked when
// nothing else can go wrong, and one by one: if we die then, such a thread is only
// put right when it is continued.
func (c *capturer) all(ctx context.Context, image *dir.Writer) error {
	c.facts()
	var takings []*taking
	var running, stopped []visit
	for _, p := range c.f.processes {
		t := &taking{p: p, known: make(chan struct{}), visited: make(chan struct{})}
		takings = append(takings, t)
		for i := range p.threads {
			if p.stopSignal == 0 {
				running = append(running, visit{t, i})
			} else {
				stopped = append(stopped, visit{t, i})
			}
		}
	}
	meanwhile, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	group, gctx := errgroup.WithContext(meanwhile)
	group.Go(func() error { return c.namespaces(gctx, image) })
	group.Go(func() error { return c.outside(gctx, takings) })
	err := c.visits(gctx, running, atOnce)
	if err != nil {
		cancel(err)
	}
	if e := group.Wait(); err == nil || errors.Is(err, e) { // err may come of it
		err = e
	}
	if err != nil {
		return err
	}
	if err := c.visits(ctx, stopped, 1); err != nil {
		return err
	}
	for _, t := range takings {
		c.img.Processes = append(c.img.Processes, t.rec)
		if t.mm != nil {
			c.img.MMs = append(c.img.MMs, t.mm)
		}
	}
	if err := c.jobs(ctx); err != nil {
		return err
	}
	c.img.Seccomp = c.filters.Record()
	return fault.Point("captured-namespaces")
}

// visit is one thread of a process that is to be asked.
type visit struct {
	t *taking
	i int
}

// visits asks threads, so many at a time.
func (c *capturer) visits(ctx context.Context, all []visit, most int) error {
	ready := func(k int) bool { return closed(all[k].t.known) && all[k].t.asking < atOnceOfProcess }
	return remote.Together(len(all), most, ready, func(k int, idle remote.Idle) error {
		t, i := all[k].t, all[k].i
		if err := await(ctx, t.known); err != nil {
			return err
		}
		t.asking++
		defer func() { t.asking-- }()
		if err := c.thread(ctx, t, i, idle); err != nil {
			return c.wrap(t, err)
		}
		if t.asked++; t.asked < len(t.p.threads) {
			return nil
		}
		close(t.visited)
		return fault.Point("captured-process")
	})
}

func closed(done chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
		return false
	}
}

func await(ctx context.Context, done chan struct{}) error {
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (c *capturer) thread(ctx context.Context, t *taking, i int, idle remote.Idle) (err error) {
	o := task.ThreadOptions{Filters: c.filters, MM: t.mm, VDSO: t.vdso, Idle: idle}
	init := t.p == c.f.processes[0] && i == 0
	if init {
		o.LastPID = &c.img.Container.NsLastPid
	}
	if err := task.CaptureThread(ctx, t.rec, i, t.p.threads[i], o); err != nil {
		return err
	}
	if i == 0 {
		c.img.Host.Xfeatures |= task.XFeatures(t.rec.Threads[0].Xstate)
	}
	if !init {
		return nil
	}
	recordProfile(c.img.Container, c.f.c.spec, t.rec)
	c.img.Container.Console, err = c.captureConsole(t.p)
	return err
}

// outside reads what /proc shows of every process, and hands its memory to the
// saver.
func (c *capturer) outside(ctx context.Context, takings []*taking) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer hurry()()
	if err := c.sharers(); err != nil {
		return err
	}
	mms := uint32(0)
	for i, t := range takings {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if !t.p.zombie {
			mms++
			t.mm = &blob.MM{Id: mms}
		}
		if err := c.process(ctx, t, i == 0); err != nil {
			return c.wrap(t, err)
		}
	}
	var err error
	if c.img.Files, c.img.FDTables, err = c.objects.Finish(ctx); err != nil {
		return err
	}
	return fault.Point("captured-files")
}

// sharers refuses what has begun to share its memory since the survey.
func (c *capturer) sharers() error {
	var running []int
	number := map[int]int{}
	for _, p := range c.f.processes {
		if number[p.hostPID] = int(c.pids[p.hostPID]); p.status.VMSize > 0 {
			running = append(running, p.hostPID)
		}
	}
	return errors.Join(sharers(running, number)...)
}

func (c *capturer) wrap(t *taking, err error) error {
	return &errs.Error{Op: "capture", PID: int(c.pids[t.p.hostPID]), Err: err}
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

func (c *capturer) process(ctx context.Context, t *taking, init bool) error {
	p := t.p
	stat, err := procfs.ReadStat(p.hostPID)
	if err != nil {
		return err
	}
	if t.rec, err = task.Describe(p.hostPID, &p.status, &stat); err != nil {
		return err
	}
	if !init {
		t.rec.Ppid = c.pids[p.hostPPID]
	}
	if p.zombie {
		close(t.known)
		return nil
	}
	for _, timer := range t.rec.Timers {
		timer.Tid = c.tids[int(timer.Tid)]
	}
	if p.stopSignal != 0 {
		t.rec.State, t.rec.StopSignal = blob.Process_STATE_STOPPED, uint32(p.stopSignal)
	}
	maps, err := c.flags.mappings(p.hostPID)
	if err != nil {
		return err
	}
	t.vdso = vdsoIn(maps)
	t.rec.Threads = make([]*blob.Thread, len(p.threads))
	close(t.known)
	t.rec.Mm = t.mm.Id
	ref := object.ProcRef{HostPID: p.hostPID, PID: int(c.pids[p.hostPID])}
	if err := c.memory(ctx, ref, &stat, maps, t.mm); err != nil {
		return err
	}
	if init && p.stopSignal == 0 { // it is asked to open a file meanwhile
		if err := await(ctx, t.visited); err != nil {
			return err
		}
	}
	return c.files(ctx, ref, t.rec)
}

// vdsoIn is where a process has its vdso; zero if it is not as the kernel made it.
func vdsoIn(maps []procfs.SMap) (r remote.Range) {
	for _, m := range maps {
		if m.Name == "[vdso]" && m.Prot == unix.PROT_READ|unix.PROT_EXEC && r.Start == 0 {
			r = remote.Range{Start: remote.Addr(m.Start), End: remote.Addr(m.End)}
		}
	}
	return r
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

func (c *capturer) memory(ctx context.Context, ref object.ProcRef, stat *procfs.Stat, maps []procfs.SMap, mm *blob.MM) error {
	if err := describeMM(ctx, ref, stat, maps, mm, c.objects, c.contents); err != nil {
		return err
	}
	return c.saver.AddressSpace(ref.HostPID, mm, len(c.f.processes) > 1, c.pre.tracker(ref.HostPID))
}

// namespaces records the namespaces and packs the tmpfs mounts.
func (c *capturer) namespaces(ctx context.Context, image *dir.Writer) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer hurry()()
	ns, own, err := namespaces.Describe(ctx, c.f.c.initPID)
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
		if err := namespaces.SaveTmpfs(ctx, c.f.c.initPID, own[i], w); err != nil {
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
