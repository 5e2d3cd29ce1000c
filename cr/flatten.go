package cr

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/blob/dir"
	"github.com/stasis-cr/stasis/cr/mem"
	"github.com/stasis-cr/stasis/cr/undo"
)

// FlattenOptions says what to flatten, and whereto.
type FlattenOptions struct {
	ImageDir string
	OutDir   string
	Progress func(Progress) // nil: none
}

// Flatten writes a checkpoint that builds upon earlier ones as one that stands
// alone. Chunks are copied as they are stored, after a look at their checksums;
// those that no page lies in are left out.
func Flatten(ctx context.Context, o FlattenOptions) (err error) {
	image, err := dir.Open(o.ImageDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, image.Close()) }()
	pages, err := openPages(image)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pages.close()) }()
	var u undo.Stack
	defer u.Run(ctx, &err)
	out, err := dir.Create(o.OutDir)
	if err != nil {
		return err
	}
	u.Add(func(context.Context) error { return out.Abort() })
	img := image.Image() // changed below: image is not used as a checkpoint any more
	if err := flattenArchives(ctx, image, out); err != nil {
		return err
	}
	if err := flattenPages(ctx, img, pages.Pages, out, o.Progress); err != nil {
		return err
	}
	if err := out.Commit(img); err != nil {
		return err
	}
	u.Keep()
	return nil
}

// flattenPages copies the chunks that are needed into one store.
func flattenPages(ctx context.Context, img *blob.Image, pages *mem.Pages, out *dir.Writer, report func(Progress)) error {
	if img.Pages == nil {
		return nil
	}
	f, err := out.Create(PagesFile)
	if err != nil {
		return err
	}
	used := img.Referenced()
	var done atomic.Int64
	total := int64(0)
	for i, c := range img.Pages.Chunks {
		if used[i] {
			total += int64(c.Stored)
		}
	}
	stop := watch(ctx, report, "flatten", func() (int64, int64) { return done.Load(), total })
	defer stop()
	buf := make([]byte, mem.ChunkSize)
	at := make([]uint64, len(used)) // where each chunk lies in f
	for i, c := range img.Pages.Chunks {
		if !used[i] {
			continue
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		b, err := pages.Stored(i, buf)
		if err != nil {
			return err
		}
		at[i] = uint64(done.Load())
		if _, err := f.WriteAt(b, done.Load()); err != nil {
			return fmt.Errorf("page store: %w", err)
		}
		done.Add(int64(c.Stored))
	}
	for i, c := range img.Pages.Chunks {
		c.Store, c.Offset = 0, at[i]
	}
	img.KeepChunks(used)
	img.Pages = &blob.PageStore{File: PagesFile, Size: uint64(total), Chunks: img.Pages.Chunks}
	return nil
}

// flattenArchives copies the archives of tmpfs.
func flattenArchives(ctx context.Context, image *dir.Dir, out *dir.Writer) error {
	for _, t := range image.Image().Namespaces.GetTmpfs() {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if t.Archive == "" {
			continue
		}
		if err := flattenArchive(image, out, t); err != nil {
			return fmt.Errorf("tmpfs %s: %w", t.Mountpoint, err)
		}
	}
	return nil
}

func flattenArchive(image *dir.Dir, out *dir.Writer, t *blob.Tmpfs) (err error) {
	from, err := image.Open(t.Archive)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, from.Close()) }()
	if err := checkSum(from, t); err != nil {
		return err
	}
	to, err := out.Create(t.Archive)
	if err != nil {
		return err
	}
	_, err = io.Copy(to, io.LimitReader(from, int64(t.Size)))
	return err
}
