package object

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/cr/procfs"
	"github.com/stasis-cr/stasis/cr/sys"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// ContentWriter stores the bytes of a file that has no name in the container.
type ContentWriter interface {
	// Write stores size bytes and answers their Contents id. r is an *os.File
	// that knows SEEK_DATA.
	Write(ctx context.Context, r io.ReaderAt, size int64) (uint32, error)
}

// Env is what a capture needs to know of the container.
type Env struct {
	InitPID   int      // the container's init, in our pid namespace
	Externals []string // links of stdio 0, 1, 2 as the runtime got them
	Terminal  bool     // stdio is a pseudo-terminal made for the container
	Pages     ContentWriter
	// Enter runs f on a thread inside the container's namespaces.
	Enter func(ctx context.Context, pid int, f func() error) error
	// ContainerPID translates a pid (or, negative, a process group) of our
	// namespace; 0 if it has none there.
	ContainerPID func(host int) int
	FileLocks    bool // save file locks instead of refusing them
	ExtUnixSk    bool // datagram sockets may be connected to outside
	Survey       bool // tasks are running: read no contents, tolerate tasks that vanish
}

// object is one description on its way into the image.
type object struct {
	file *blob.File
	kind *Kind
	body proto.Message
	desc *Desc
}

// inode is a file without a name: its bytes are stored once.
type inode struct{ id, contents uint32 }

type inodeKey struct{ dev, ino uint64 }

// place is one descriptor of a process that holds a given description.
type place struct {
	hostPID, pid, fd int
	id               uint32
}

// Capture collects the descriptions of one container. It is not safe for
// concurrent use.
type Capture struct {
	env     Env
	kinds   []Kind
	ids     identities
	opened  map[group]uint32 // made by Path and Mapping, not by a descriptor
	objects []*object        // the object with id n is at n-1
	tables  []*blob.FDTable
	procs   []ProcRef // by kcmp's order of their tables
	places  []place
	locked  map[lockKey]bool
	inodes  map[inodeKey]*inode
	shared  map[stdio]bool // those that have a description already
	notes   []string

	loaded bool
	root   *os.File        // of the container, O_PATH
	mounts map[uint64]bool // mount ids of the container
	ttys   map[uint64]bool // device numbers of init's terminals
	netns  uint64          // inode of the container's net namespace
}

// NewCapture starts a capture; Close ends it.
func NewCapture(env Env) *Capture {
	return &Capture{
		env: env, kinds: Kinds(), ids: identities{map[group][]holder{}}, opened: map[group]uint32{},
		inodes: map[inodeKey]*inode{}, locked: map[lockKey]bool{}, shared: map[stdio]bool{},
	}
}

// Close gives back what the capture holds open.
func (c *Capture) Close() error {
	if c.root == nil {
		return nil
	}
	return c.root.Close()
}

// Notes lists what a restore will not bring back although nothing was refused,
// such as connections that waited to be accepted.
func (c *Capture) Notes() []string { return c.notes }

// note keeps a sentence for whoever reads the log; the checkpoint goes on.
func (c *Capture) note(format string, args ...any) {
	c.notes = append(c.notes, fmt.Sprintf(format, args...))
}

// Table captures all descriptors of one process and answers the id of its table
// and the file locks that it holds. Its error joins every refusal.
func (c *Capture) Table(ctx context.Context, p ProcRef) (uint32, []*blob.FileLock, error) {
	if err := c.load(); err != nil {
		return 0, nil, err
	}
	if err := c.own(p); err != nil {
		return 0, nil, c.gone(p, err)
	}
	numbers, err := descriptors(p.HostPID)
	if err != nil {
		return 0, nil, c.gone(p, err)
	}
	t := &blob.FDTable{Id: uint32(len(c.tables) + 1)}
	var locks []*blob.FileLock
	var refusals []error
	for _, n := range numbers {
		if err := context.Cause(ctx); err != nil {
			return 0, nil, err
		}
		fd, held, err := c.descriptor(ctx, p, n)
		if err != nil {
			refusals = append(refusals, err)
		}
		if fd != nil {
			t.Fds = append(t.Fds, fd)
		}
		locks = append(locks, held...)
	}
	c.tables = append(c.tables, t)
	return t.Id, locks, errors.Join(refusals...)
}

// gone turns the end of a running task into nothing at all while surveying.
func (c *Capture) gone(p ProcRef, err error) error {
	if !vanished(err) {
		return &errs.Error{Op: "capture", PID: p.PID, Err: err}
	}
	if c.env.Survey {
		return nil
	}
	return &errs.Error{Op: "capture", PID: p.PID, Err: fmt.Errorf("%w: %w", errs.ErrGone, err)}
}

// descriptors lists the open descriptor numbers of a process, ascending.
func descriptors(pid int) ([]int, error) {
	numbers, err := procfs.ReadFDs(pid)
	slices.Sort(numbers)
	return numbers, err
}

// descriptor captures one descriptor. The answers are nil if it vanished or was
// refused.
func (c *Capture) descriptor(ctx context.Context, p ProcRef, n int) (*blob.FD, []*blob.FileLock, error) {
	d, err := lookFD(p, n)
	if err != nil {
		return nil, nil, c.lost(p, n, err)
	}
	h, at, err := c.identify(d)
	if err != nil {
		return nil, nil, c.lost(p, n, err)
	}
	var id uint32
	if h != nil {
		id = h.id
	} else {
		id, err = c.describe(ctx, d)
		if c.env.Survey && vanished(err) {
			return nil, nil, nil
		}
		c.ids.add(d, at, id)
	}
	if err != nil {
		return nil, nil, d.wrap(err)
	}
	if id == 0 { // refused before, under another number
		return nil, nil, nil
	}
	c.places = append(c.places, place{p.HostPID, p.PID, n, id})
	locks, err := c.locks(d, id)
	if err != nil {
		err = d.wrap(err)
	}
	return &blob.FD{Fd: int32(n), File: id, Cloexec: d.info.Flags&unix.O_CLOEXEC != 0}, locks, err
}

// lost says that a descriptor could not be looked at. A running task may have
// closed it between two looks; a stopped one can't have.
func (c *Capture) lost(p ProcRef, n int, err error) error {
	if c.env.Survey && vanished(err) {
		return nil
	}
	return &errs.Error{Op: "capture", PID: p.PID, Obj: errs.FD(n), Err: err}
}

// identify asks whether d is known. A survey forgets what vanished and asks once
// more.
func (c *Capture) identify(d *Desc) (*holder, int, error) {
	h, at, err := c.ids.find(d)
	if err != nil && c.env.Survey && vanished(err) {
		c.ids.prune(d)
		h, at, err = c.ids.find(d)
	}
	return h, at, err
}

// describe finds the kind of a new description and has it captured.
func (c *Capture) describe(ctx context.Context, d *Desc) (uint32, error) {
	i := slices.IndexFunc(c.kinds, func(k Kind) bool { return k.Match(c, d) })
	if i < 0 {
		return 0, refuse(c, d)
	}
	k := &c.kinds[i]
	body, err := k.Capture(ctx, c, d)
	if err != nil {
		return 0, err
	}
	f := &blob.File{
		Id: uint32(len(c.objects) + 1), Kind: k.Tag, Rev: k.Rev, Name: d.Link,
		Flags: d.flags(), Pos: uint64(max(0, d.info.Pos)),
	}
	if f.Owner, err = c.owner(d); err != nil {
		return 0, err
	}
	c.objects = append(c.objects, &object{f, k, body, d})
	return f.Id, nil
}

// own makes sure that all threads of p use one descriptor table, and no other
// process uses it (clone with CLONE_FILES but without CLONE_THREAD).
func (c *Capture) own(p ProcRef) error {
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", p.HostPID))
	if err != nil {
		return err
	}
	for _, t := range threads {
		tid, err := strconv.Atoi(t.Name())
		if err != nil {
			return fmt.Errorf("/proc/%d/task: %w", p.HostPID, err)
		}
		r, err := sys.Kcmp(p.HostPID, tid, sys.KcmpFiles, 0, 0)
		if err != nil && (!c.env.Survey || !vanished(err)) {
			return fmt.Errorf("kcmp: %w", err)
		}
		if err == nil && r != 0 {
			return unsupported("thread %d has a descriptor table of its own", tid)
		}
	}
	at, found, err := search(len(c.procs), func(i int) (int, error) {
		return sys.Kcmp(p.HostPID, c.procs[i].HostPID, sys.KcmpFiles, 0, 0)
	})
	if err != nil {
		if c.env.Survey && vanished(err) { // an earlier process ended; the real capture will tell
			return nil
		}
		return err
	}
	if found {
		return unsupported("it shares its descriptor table with process %d", c.procs[at].PID)
	}
	c.procs = slices.Insert(c.procs, at, p)
	return nil
}

// Path captures what a link of /proc/PID leads to, as a description that does
// not exist in the container: "cwd" and "root" with O_PATH, "exe" for reading.
// The root of a process is 0 if it is the container's.
func (c *Capture) Path(ctx context.Context, p ProcRef, link string) (uint32, error) {
	if err := c.load(); err != nil {
		return 0, err
	}
	flags := uint32(unix.O_PATH | unix.O_DIRECTORY)
	if link == "exe" {
		flags = unix.O_RDONLY | oLargeFile
	}
	d, err := look(p, fmt.Sprintf("/proc/%d/%s", p.HostPID, link))
	if err != nil {
		return 0, c.gone(p, err)
	}
	if link == "root" && c.isRoot(d) {
		return 0, nil
	}
	id, err := c.unheld(ctx, d, flags)
	if err != nil {
		return 0, &errs.Error{Op: "capture", PID: p.PID, Obj: errs.Name(link), Err: err}
	}
	return id, nil
}

// Mapping captures the file behind a mapping, through /proc/PID/map_files, which
// works for deleted files too. The description is one of its own, open for
// writing only where the mapping is shared and may be written.
func (c *Capture) Mapping(ctx context.Context, p ProcRef, start, end uint64, shared, maywrite bool) (uint32, error) {
	if err := c.load(); err != nil {
		return 0, err
	}
	flags := uint32(unix.O_RDONLY | oLargeFile)
	if shared && maywrite {
		flags = unix.O_RDWR | oLargeFile
	}
	d, err := look(p, fmt.Sprintf("/proc/%d/map_files/%x-%x", p.HostPID, start, end))
	if err != nil {
		return 0, c.gone(p, err)
	}
	id, err := c.unheld(ctx, d, flags)
	if err != nil {
		err = fmt.Errorf("%s: %w", d.Link, err)
		return 0, &errs.Error{Op: "capture", PID: p.PID, Obj: errs.Range{Start: start, End: end}, Err: err}
	}
	return id, nil
}

// unheld captures an inode that no descriptor of ours leads to.
func (c *Capture) unheld(ctx context.Context, d *Desc, flags uint32) (uint32, error) {
	d.info.Flags = flags
	g := groupOf(d)
	if id, ok := c.opened[g]; ok {
		return id, nil
	}
	if !d.is(unix.S_IFREG) && !d.is(unix.S_IFDIR) && !d.is(unix.S_IFCHR) {
		return 0, refuse(c, d)
	}
	id, err := c.describe(ctx, d)
	if err != nil {
		return 0, err
	}
	c.opened[g] = id
	return id, nil
}

// Finish checks what only all descriptions together tell, and answers the
// records. Bodies are complete only now.
func (c *Capture) Finish(ctx context.Context) ([]*blob.File, []*blob.FDTable, error) {
	var refusals []error
	for i := range c.kinds {
		k := &c.kinds[i]
		if k.Finish == nil {
			continue
		}
		if of := c.of(k); len(of) > 0 {
			refusals = append(refusals, k.Finish(ctx, c, of))
		}
	}
	if err := errors.Join(refusals...); err != nil {
		return nil, nil, err
	}
	files := make([]*blob.File, len(c.objects))
	for i, o := range c.objects {
		var err error
		if o.file.Body, err = (proto.MarshalOptions{Deterministic: true}).Marshal(o.body); err != nil {
			return nil, nil, o.desc.wrap(err)
		}
		files[i] = o.file
	}
	return files, c.tables, nil
}

// of lists the objects of one kind, in the order of their ids.
func (c *Capture) of(k *Kind) []*object {
	var of []*object
	for _, o := range c.objects {
		if o.kind == k {
			of = append(of, o)
		}
	}
	return of
}

// inode numbers a nameless file and stores its bytes, both once.
func (c *Capture) inode(ctx context.Context, d *Desc) (*inode, error) {
	k := inodeKey{d.dev(), d.stat.Ino}
	if n := c.inodes[k]; n != nil {
		return n, nil
	}
	n := &inode{id: uint32(len(c.inodes) + 1)}
	if !c.env.Survey {
		f, err := d.open()
		if err != nil {
			return nil, err
		}
		defer f.Close() //nolint:errcheck // read only
		if n.contents, err = c.env.Pages.Write(ctx, f, int64(d.stat.Size)); err != nil {
			return nil, fmt.Errorf("contents: %w", err)
		}
	}
	c.inodes[k] = n
	return n, nil
}
