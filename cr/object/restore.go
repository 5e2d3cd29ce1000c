package object

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/cr/fault"
	"github.com/stasis-cr/stasis/cr/procfs"
	"github.com/stasis-cr/stasis/cr/undo"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// RestoreEnv is what a restore needs besides the records.
type RestoreEnv struct {
	InitPID int         // the new container's init, in our pid namespace
	Stdio   [3]*os.File // what the new container got as stdio; not closed
	Files   []*blob.File
	// ReadContents writes the bytes of Contents id into w, an empty file, and sets
	// its size.
	ReadContents func(ctx context.Context, id uint32, w *os.File) error
	// HostPID translates a pid of the container into ours; 0 if there is none.
	HostPID func(pid int) int
	// Enter runs f on a thread inside the container's namespaces.
	Enter func(ctx context.Context, pid int, f func() error) error
	// FrozenAt is the wall clock of the checkpoint, ns: absolute timers count
	// from it. 0: they count from now.
	FrozenAt int64
}

// record is one description on its way back.
type record struct {
	file *blob.File
	kind *Kind
	body proto.Message
	// What Prepare left, or -1: the description itself, or an O_PATH or otherwise
	// unfinished descriptor that leads to its inode.
	fd, handle int
	size       int64    // of the file behind handle, now
	open       *os.File // the finished description
}

// wrap says whose description err is about.
func (rec *record) wrap(err error) error {
	return &errs.Error{Op: "restore", Obj: errs.Name(fmt.Sprintf("%s %q", rec.kind.Tag, rec.file.Name)), Err: err}
}

// Restorer makes descriptions from their records, each once. It is not safe for
// concurrent use.
type Restorer struct {
	env      RestoreEnv
	order    []*record
	byID     map[uint32]*record
	prepared bool
	netAdmin bool // the container can have CAP_NET_ADMIN
	tasks    bool // the container's tasks exist: paths of /proc can be opened
	pipes    map[uint32]*pipe
	fifos    map[string]bool
	inodes   map[uint32]*nameless
	ghosts   map[uint32]*record // the description that stands for the making of each
	spare    []int              // ours alone, closed by Close
	undo     undo.Stack
}

// NewRestorer decodes all records. It refuses what this engine doesn't know
// before anything is made.
func NewRestorer(env RestoreEnv) (*Restorer, error) {
	r := &Restorer{
		env: env, byID: map[uint32]*record{}, pipes: map[uint32]*pipe{},
		fifos: map[string]bool{}, inodes: map[uint32]*nameless{}, ghosts: map[uint32]*record{},
	}
	kinds := Kinds()
	byTag := map[string]*Kind{}
	for i := range kinds {
		byTag[kinds[i].Tag] = &kinds[i]
	}
	for _, f := range env.Files {
		k := byTag[f.Kind]
		if k == nil || f.Rev == 0 || f.Rev > k.Rev {
			return nil, fmt.Errorf("file %d is a %q of revision %d: %w", f.Id, f.Kind, f.Rev, errs.ErrVersion)
		}
		rec := &record{file: f, kind: k, body: k.New(), fd: -1, handle: -1}
		if err := proto.Unmarshal(f.Body, rec.body); err != nil {
			return nil, fmt.Errorf("file %d: %w: %w", f.Id, errs.ErrCorrupt, err)
		}
		if r.byID[f.Id] != nil {
			return nil, corrupt("two files have id %d", f.Id)
		}
		r.order = append(r.order, rec)
		r.byID[f.Id] = rec
	}
	return r, nil
}

// Prepare makes everything that is made by name: one visit to the container's
// namespaces for all. Open calls it if nobody else did.
//
// Precondition: the file systems are what they were, tmpfs contents included.
func (r *Restorer) Prepare(ctx context.Context) error {
	if r.prepared {
		return nil
	}
	r.prepared = true
	init, err := procfs.ReadStatus(r.env.InitPID)
	if err != nil {
		return fmt.Errorf("the container's init: %w", err)
	}
	r.netAdmin = init.CapBnd&(1<<unix.CAP_NET_ADMIN) != 0
	if err := r.enter(ctx, r.order); err != nil {
		return err
	}
	return fault.Point("prepared-objects")
}

// enter has each kind prepare its records, all in one visit: joining namespaces
// costs a thread.
func (r *Restorer) enter(ctx context.Context, recs []*record) error {
	byKind := map[*Kind][]*record{}
	var kinds []*Kind
	for _, rec := range recs {
		if rec.kind.Prepare == nil {
			continue
		}
		if byKind[rec.kind] == nil {
			kinds = append(kinds, rec.kind)
		}
		byKind[rec.kind] = append(byKind[rec.kind], rec)
	}
	if len(kinds) == 0 {
		return nil
	}
	return r.env.Enter(ctx, r.env.InitPID, func() error {
		for _, k := range kinds {
			if err := k.Prepare(ctx, r, byKind[k]); err != nil {
				return err
			}
		}
		return nil
	})
}

// Open answers the description with the given id. It is made once and stays
// ours, and open, until Close.
func (r *Restorer) Open(ctx context.Context, id uint32) (*os.File, error) {
	rec := r.byID[id]
	if rec == nil {
		return nil, corrupt("no file has id %d", id)
	}
	if rec.open != nil {
		return rec.open, nil
	}
	if err := r.Prepare(ctx); err != nil {
		return nil, err
	}
	fd, err := rec.kind.Open(ctx, r, rec)
	if err != nil {
		return nil, rec.wrap(err)
	}
	rec.fd = -1
	// Wrapped while it blocks, so that the Go runtime keeps its poller off it.
	rec.open = os.NewFile(uintptr(fd), rec.file.Name)
	if rec.file.Flags&unix.O_PATH == 0 && rec.kind.Tag != externalKind().Tag {
		if err := setStatus(fd, rec.file.Flags); err != nil {
			return nil, rec.wrap(err)
		}
	}
	return rec.open, nil
}

// Mapping is Open for a file that is to be mapped: shared, and with maywrite for
// writing too. A private mapping needs all of the file that it had: behind its
// new end the program would get SIGBUS.
func (r *Restorer) Mapping(ctx context.Context, id uint32, shared, maywrite bool) (*os.File, error) {
	f, err := r.Open(ctx, id)
	if err != nil {
		return nil, err
	}
	rec := r.byID[id]
	mode := rec.file.Flags & unix.O_ACCMODE
	if rec.file.Flags&unix.O_PATH != 0 || mode == unix.O_WRONLY || shared && maywrite && mode != unix.O_RDWR {
		return nil, rec.wrap(corrupt("flags %#o don't allow the mapping", rec.file.Flags))
	}
	p, ok := rec.body.(*blob.PathFile)
	if ok && !shared && p.Mode&unix.S_IFMT == unix.S_IFREG && rec.size < int64(p.Size) {
		return nil, rec.wrap(fmt.Errorf("%w: %s had %d bytes at the checkpoint and has %d now",
			errs.ErrHost, p.Path, p.Size, rec.size))
	}
	return f, nil
}

// Arm does what must come last, when every table is installed and all memory is
// mapped: seals of memfds, owners of signals, timers. Locks are those that all
// processes together hold; only those of descriptions are taken here.
func (r *Restorer) Arm(ctx context.Context, locks []*blob.FileLock) error {
	for _, rec := range r.order {
		if rec.open == nil {
			continue // nobody has it
		}
		if rec.kind.Arm != nil {
			if err := rec.kind.Arm(ctx, r, rec); err != nil {
				return rec.wrap(err)
			}
		}
		if err := r.own(int(rec.open.Fd()), rec.file); err != nil {
			return rec.wrap(err)
		}
	}
	for _, l := range locks {
		rec := r.byID[l.File]
		if l.Kind == blob.FileLock_POSIX {
			continue // Link
		}
		if rec == nil || rec.open == nil {
			return corrupt("a lock is held on file %d, which nobody has", l.File)
		}
		if err := lock(int(rec.open.Fd()), l); err != nil {
			return rec.wrap(err)
		}
	}
	r.undo.Keep()
	return nil
}

// Close gives up our side of everything; what processes hold lives on. Before
// Arm succeeded it also takes back what was made in the file system.
func (r *Restorer) Close() (err error) {
	r.undo.Run(context.Background(), &err)
	for _, rec := range r.order {
		for _, fd := range []int{rec.fd, rec.handle} {
			if fd >= 0 {
				err = errors.Join(err, unix.Close(fd))
			}
		}
		rec.fd, rec.handle = -1, -1
		if rec.open != nil {
			err = errors.Join(err, rec.open.Close())
			rec.open = nil
		}
	}
	for _, fd := range r.spare {
		err = errors.Join(err, unix.Close(fd))
	}
	r.spare = nil
	return err
}
