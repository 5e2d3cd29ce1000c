package object

import (
	"context"
	"fmt"
	"path"
	"strings"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/errs"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// A FIFO is a pipe with a name: the inode is in the file system, what is in it
// is not.
func fifoKind() Kind {
	return Kind{
		Tag: "fifo", Rev: 1,
		New: func() proto.Message { return &blob.Pipe{} },
		Match: func(_ *Capture, d *Desc) bool {
			return d.is(unix.S_IFIFO) && strings.HasPrefix(d.Link, "/") && d.info.Flags&unix.O_PATH == 0
		},
		Capture: captureFIFO,
		Finish:  finishPipes,
		Prepare: prepareFIFOs,
		Open:    openFIFO,
	}
}

// captureFIFO needs the name to lead to it: a FIFO that was deleted can't be opened
// by anybody else, and is not made anew.
func captureFIFO(ctx context.Context, c *Capture, d *Desc) (proto.Message, error) {
	if err := c.named(d); err != nil {
		return nil, err
	}
	m, err := capturePipe(ctx, c, d)
	if err != nil {
		return nil, err
	}
	m.(*blob.Pipe).Path = d.Link
	return m, nil
}

// prepareFIFOs gets hold of the inodes; O_PATH does not wait for a peer.
func prepareFIFOs(_ context.Context, _ *Restorer, recs []*record) error {
	root, err := openRoot()
	if err != nil {
		return err
	}
	defer unix.Close(root)
	for _, rec := range recs {
		name := rec.body.(*blob.Pipe).Path
		if !path.IsAbs(name) {
			return rec.wrap(corrupt("path %q is not absolute", name))
		}
		if rec.handle, err = openIn(root, name, unix.O_PATH|unix.O_NOFOLLOW); err != nil {
			return rec.wrap(fmt.Errorf("open %s: %w", name, err))
		}
		var st unix.Stat_t
		if err := unix.Fstat(rec.handle, &st); err != nil {
			return rec.wrap(err)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFIFO {
			return rec.wrap(fmt.Errorf("%w: %s is no FIFO any more", errs.ErrHost, name))
		}
	}
	return nil
}

// openFIFO keeps a descriptor of its own for reading and writing until Close, so
// that no open waits for a peer and the data has somewhere to be.
func openFIFO(_ context.Context, r *Restorer, rec *record) (int, error) {
	b := rec.body.(*blob.Pipe)
	if !r.fifos[b.Path] {
		fd, err := reopen(rec.handle, unix.O_RDWR)
		if err != nil {
			return -1, err
		}
		r.spare = append(r.spare, fd)
		r.fifos[b.Path] = true
		if err := unix.SetNonblock(fd, true); err != nil {
			return -1, err
		}
		data := r.pipeData(func(p *blob.Pipe) bool { return p.Path == b.Path })
		if err := fillPipe(fd, b.Size, data); err != nil {
			return -1, err
		}
	}
	return reopen(rec.handle, rec.file.Flags&^unix.O_DIRECT)
}
