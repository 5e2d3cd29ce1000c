package cr

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"time"

	"github.com/stasis-cr/stasis/cr/blob/dir"
	"github.com/stasis-cr/stasis/cr/pageserver"
)

// PageServerOptions says what is served, where, and to whom.
type PageServerOptions struct {
	ImageDir string
	Listen   string // HOST:PORT
	Keys     pageserver.Keys

	Ready func(net.Addr) // called when clients may come; nil: nobody wants to know
	Log   *slog.Logger   // nil: discard
}

// ServePages gives a checkpoint to other machines until ctx ends, which is no
// error. Nothing is written.
func ServePages(ctx context.Context, o PageServerOptions) (err error) {
	s, err := pageserver.Open(o.ImageDir, o.Keys, o.Log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", o.Listen)
	if err != nil {
		return err
	}
	if o.Ready != nil {
		o.Ready(l.Addr())
	}
	return s.Serve(ctx, l)
}

// fetch brings the checkpoint from its page server into the image directory. It
// answers a client that has nothing to do if there is no server.
func fetch(ctx context.Context, o *RestoreOptions, log *slog.Logger) (*pageserver.Client, error) {
	c := pageserver.NewClient(o.PageServer)
	if o.PageServer.Addr == "" {
		return c, nil
	}
	begin := time.Now()
	part := pageserver.AllPages
	if o.LazyPages {
		part = pageserver.NoPages
	}
	if err := c.Fetch(ctx, o.ImageDir, part); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	log.Info("fetched", slog.String("from", o.PageServer.Addr), slog.Duration("took", time.Since(begin)))
	return c, nil
}

// openImage opens a checkpoint that is to be restored.
func openImage(o *RestoreOptions) (*dir.Dir, error) {
	if o.PageServer.Addr != "" && o.LazyPages {
		return dir.OpenState(o.ImageDir) // archives were looked at when they came
	}
	return dir.Open(o.ImageDir)
}

// openSource opens the pages of a checkpoint that is to be restored, wherever they
// are. From a server they come until ctx ends.
func openSource(ctx context.Context, o *RestoreOptions, image *dir.Dir, c *pageserver.Client) (*openedPages, error) {
	switch {
	case o.PageServer.Addr == "":
		return openPages(image)
	case o.LazyPages:
		return openFar(ctx, image, c)
	}
	return openFiles(image, image.Received)
}

// openFar leaves the pages of a checkpoint where they are served. Those of earlier
// checkpoints that it builds upon may be here: then they are read here.
func openFar(ctx context.Context, image *dir.Dir, c *pageserver.Client) (*openedPages, error) {
	far := &openedPages{remote: c.Remote()}
	index := image.Image().Pages
	var parents []io.ReaderAt
	for _, p := range index.GetParents() {
		f, err := image.Parent(p)
		if errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err != nil {
			return nil, errors.Join(err, far.close())
		}
		far.files, parents = append(far.files, f), append(parents, f)
	}
	if len(parents) < len(index.GetParents()) {
		if err := far.close(); err != nil {
			return nil, err
		}
		far.files, parents = nil, nil
	}
	far.Pages = c.Pages(ctx, index, parents...)
	return far, nil
}
