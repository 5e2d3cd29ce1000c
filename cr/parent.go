package cr

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/blob/dir"
	"github.com/stasis-cr/stasis/cr/mem"
	"github.com/stasis-cr/stasis/cr/procfs"
)

// parent is the earlier checkpoint that one builds upon: pages that were not
// written since are not saved again. Nil: there is none.
type parent struct {
	img    *blob.Image
	dir    string // from the new one's
	digest []byte
}

// openParent reads the checkpoint that o.ParentPath names. It is of use only if
// somebody knows what has been written since: without that the new checkpoint is
// a full one, and says so.
func openParent(o *CheckpointOptions, kept *keptRecord, log *slog.Logger) (_ *parent, err error) {
	if o.ParentPath == "" {
		return nil, nil
	}
	if filepath.IsAbs(o.ParentPath) {
		return nil, fmt.Errorf("--parent-path %s: it must be relative to the image's directory", o.ParentPath)
	}
	rel := filepath.Clean(o.ParentPath)
	at := o.ImageDir + "/" + rel
	d, err := dir.Open(at)
	if err != nil {
		return nil, fmt.Errorf("--parent-path: %w", err)
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	p := &parent{img: d.Image(), dir: rel}
	if p.digest, err = dir.Digest(at); err != nil {
		return nil, err
	}
	if why := kept.since(p.digest); why != "" {
		log.Warn("a full checkpoint, which does not need its parent", slog.String("why", why))
		return nil, nil
	}
	return p, nil
}

// since says why nothing is known of what was written since a checkpoint.
func (r *keptRecord) since(digest []byte) string {
	switch {
	case r == nil:
		return "nobody has followed what the container wrote"
	case r.Image != hex.EncodeToString(digest):
		return "what the container wrote has been followed since another checkpoint"
	}
	return ""
}

// store is the parent as the new page store takes it.
func (p *parent) store() *mem.Parent {
	if p == nil {
		return nil
	}
	return mem.NewParent(p.img.Pages, p.dir, p.digest)
}

// extents returns where the private pages of a process lie in the parent.
func (p *parent) extents(st *procfs.Status) []*blob.Extent {
	if p == nil {
		return nil
	}
	for _, rec := range p.img.Processes {
		if int(rec.Pid) != containerPID(st) {
			continue
		}
		for _, mm := range p.img.MMs {
			if mm.Id == rec.Mm {
				return mm.Extents
			}
		}
	}
	return nil
}

// keepOn leaves the trackers of a checkpoint that is complete to a keeper, for
// the next one to build upon it.
func (p *precopy) keepOn(ctx context.Context, c *container, imageDir string) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	digest, err := dir.Digest(imageDir)
	if err != nil {
		return err
	}
	return keep(c.keepFile, hex.EncodeToString(digest), c.initPID, p.spaces)
}
