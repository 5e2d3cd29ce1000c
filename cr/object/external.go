package object

import (
	"context"
	"fmt"
	"strings"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/errs"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// An external is what the runtime's caller gave the container as stdio: a pipe
// or socket to a log reader, a file or device of the host, a terminal. The image
// holds only which of the three it was; the new caller brings a new one.
func externalKind() Kind {
	return Kind{
		Tag: "external", Rev: 1,
		New:     func() proto.Message { return &blob.External{} },
		Match:   func(c *Capture, d *Desc) bool { return c.external(d) >= 0 },
		Capture: captureExternal,
		Open:    openExternal,
	}
}

// external answers which stdio d is, or -1. A file counts only if its mount is
// not the container's: runc reopens /dev/null inside, and that is a path.
func (c *Capture) external(d *Desc) int {
	if c.env.Terminal && c.isTerminal(d) {
		return 0
	}
	if !strings.HasPrefix(d.Link, "pipe:[") && !strings.HasPrefix(d.Link, "socket:[") &&
		(!strings.HasPrefix(d.Link, "/") || c.mounts[d.stat.Mnt_id]) {
		return -1
	}
	order := []int{d.FD, 0, 1, 2}
	if d.flags()&unix.O_ACCMODE == unix.O_WRONLY {
		order = []int{d.FD, 1, 2, 0}
	}
	for _, i := range order {
		if i >= 0 && i < min(3, len(c.env.Externals)) && c.env.Externals[i] == d.Link {
			return i
		}
	}
	return -1
}

// isTerminal knows the container's terminal by init's stdio, and /dev/tty, which
// is the same one by another name.
func (c *Capture) isTerminal(d *Desc) bool {
	return d.is(unix.S_IFCHR) && (c.ttys[d.rdev()] || d.rdev() == unix.Mkdev(5, 0))
}

// stdio is one thing that the caller gave.
type stdio struct {
	index    int
	terminal bool
}

// captureExternal lets the first description share the caller's; a program that
// opened /dev/stdout or /dev/tty has one of its own.
func captureExternal(_ context.Context, c *Capture, d *Desc) (proto.Message, error) {
	i := c.external(d)
	k := stdio{i, c.isTerminal(d)}
	e := &blob.External{Index: uint32(i), Reopen: c.shared[k]}
	c.shared[k] = true
	return e, nil
}

// openExternal takes the caller's own description, or opens what it leads to anew
// as the program did.
func openExternal(_ context.Context, r *Restorer, rec *record) (int, error) {
	e := rec.body.(*blob.External)
	if int(e.Index) >= len(r.env.Stdio) || r.env.Stdio[e.Index] == nil {
		return -1, fmt.Errorf("no stdio %d to take its place", e.Index)
	}
	src := int(r.env.Stdio[e.Index].Fd())
	if e.Reopen {
		if fd, err := reopen(src, rec.file.Flags); err == nil {
			return fd, nil
		} // a socket has no other description: share the one there is
	}
	fd, err := unix.FcntlInt(uintptr(src), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("dup: %w", err)
	}
	// The caller's own flags stay, but for the one that programs rely on.
	now, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err == nil {
		err = setStatus(fd, uint32(now)&^unix.O_NONBLOCK|rec.file.Flags&unix.O_NONBLOCK)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// corrupt says that a record can't be what a writer wrote.
func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errs.ErrCorrupt, fmt.Sprintf(format, args...))
}
