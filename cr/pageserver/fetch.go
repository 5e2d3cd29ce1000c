package pageserver

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"

	"golang.org/x/sync/errgroup"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/blob/dir"
	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/cr/fault"
	"github.com/stasis-cr/stasis/cr/mem"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// fetchers is how many chunks are asked for at the same time.
const fetchers = 4

// Part is how much of a checkpoint is fetched besides state and archives.
type Part int

// What is fetched of page stores.
const (
	NoPages  Part = iota
	OwnPages      // what the checkpoint itself has saved: earlier ones are here
	AllPages      // what it needs of earlier ones, too
)

// Fetch brings a checkpoint into the directory path. What is there and is right is
// not fetched again, be it half a file. The client reads no other checkpoint from
// then on.
func (c *Client) Fetch(ctx context.Context, path string, part Part) (err error) {
	digest, size, err := c.State(ctx)
	if err != nil {
		return err
	}
	r, err := dir.Receive(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	img, err := r.State(digest, func(f *os.File) error { return rest(f, c.object(ctx, kindState, 0), size) })
	if err != nil {
		return err
	}
	if err := fault.Point("page-fetch"); err != nil {
		return err
	}
	if err := c.archives(ctx, r, img); err != nil {
		return err
	}
	if part >= OwnPages {
		if err := c.stores(ctx, r, img.Pages, part == AllPages); err != nil {
			return err
		}
	}
	return r.Commit()
}

func (c *Client) archives(ctx context.Context, r *dir.Receiver, img *blob.Image) error {
	for i, t := range img.Namespaces.GetTmpfs() {
		whole := func(f *os.File) error { return checkArchive(f, t) }
		bring := func(f *os.File) error { return rest(f, c.object(ctx, kindArchive, uint32(i)), t.Size) }
		if err := r.Take(t.Archive, whole, bring); err != nil {
			return err
		}
		if err := fault.Point("page-fetch"); err != nil {
			return err
		}
	}
	return nil
}

func checkArchive(f *os.File, t *blob.Tmpfs) error {
	sum := crc32.New(castagnoli)
	n, err := io.Copy(sum, io.NewSectionReader(f, 0, int64(t.Size)+1))
	if err != nil {
		return err
	}
	if uint64(n) != t.Size || sum.Sum32() != t.Crc {
		return fmt.Errorf("%d bytes with checksum %08x, want %d with %08x: %w",
			n, sum.Sum32(), t.Size, t.Crc, errs.ErrCorrupt)
	}
	return nil
}

// rest writes what f lacks of the size bytes of from.
func rest(f *os.File, from io.ReaderAt, size uint64) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	at := st.Size()
	if uint64(at) > size {
		at = 0
	}
	if err := f.Truncate(at); err != nil {
		return err
	}
	buf := make([]byte, mostRead)
	for at < int64(size) {
		b := buf[:min(int64(size)-at, mostRead)]
		if _, err := from.ReadAt(b, at); err != nil {
			return err
		}
		if _, err := f.WriteAt(b, at); err != nil {
			return err
		}
		at += int64(len(b))
	}
	return nil
}

// stores brings the page store, and with all those of earlier checkpoints: only
// the chunks of them that are needed.
func (c *Client) stores(ctx context.Context, r *dir.Receiver, index *blob.PageStore, all bool) error {
	from := c.Pages(ctx, index)
	for _, f := range index.OwnFiles() {
		own := &transfer{n: int(f.Store), index: index, size: int64(f.Size), from: from}
		if err := own.take(ctx, r, f.Name); err != nil {
			return err
		}
	}
	if !all {
		return nil
	}
	for i, p := range index.GetParents() {
		t := &transfer{n: i + 1, index: index, size: int64(p.Size), from: from}
		if err := t.take(ctx, r, dir.Earlier(i+1)); err != nil {
			return err
		}
	}
	return nil
}

// Pages reads the page stores from the server, until ctx ends; those of earlier
// checkpoints from parents, if there are any: then they are all there.
func (c *Client) Pages(ctx context.Context, index *blob.PageStore, parents ...io.ReaderAt) *mem.Pages {
	stores := append([]io.ReaderAt{c.Store(ctx, 0)}, parents...)
	for i := len(stores); i < index.Stores(); i++ {
		stores = append(stores, c.Store(ctx, i))
	}
	return mem.OpenPages(index, stores...)
}

// transfer is one page store on its way: that with the number n.
type transfer struct {
	n     int
	index *blob.PageStore
	size  int64
	from  *mem.Pages
}

// take takes the store under a name.
func (t *transfer) take(ctx context.Context, r *dir.Receiver, name string) error {
	whole := func(f *os.File) error { return t.whole(ctx, f) }
	if err := r.Take(name, whole, func(f *os.File) error { return t.bring(ctx, f) }); err != nil {
		return err
	}
	return fault.Point("page-fetch")
}

// local reads the chunks of the transfer from f.
func (t *transfer) local(f *os.File) *mem.Pages {
	stores := make([]io.ReaderAt, t.index.Stores())
	stores[t.n] = f
	return mem.OpenPages(t.index, stores...)
}

// lacking calls do for each chunk that f does not have, several at once.
func (t *transfer) lacking(ctx context.Context, f *os.File, do func(i int, buf []byte) error) error {
	have := t.local(f)
	group, ctx := errgroup.WithContext(ctx)
	next := make(chan int)
	for range fetchers {
		group.Go(func() error {
			buf := make([]byte, mem.ChunkSize)
			for i := range next {
				if _, err := have.Stored(i, buf); err == nil {
					continue
				}
				if err := do(i, buf); err != nil {
					return err
				}
			}
			return nil
		})
	}
	group.Go(func() error {
		defer close(next)
		for i, k := range t.index.GetChunks() {
			if int(k.Store) != t.n {
				continue
			}
			select {
			case next <- i:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		return nil
	})
	return group.Wait()
}

func (t *transfer) bring(ctx context.Context, f *os.File) error {
	if err := f.Truncate(t.size); err != nil {
		return err
	}
	return t.lacking(ctx, f, func(i int, buf []byte) error {
		b, err := t.from.Stored(i, buf)
		if err != nil {
			return err
		}
		_, err = f.WriteAt(b, int64(t.index.Chunks[i].Offset))
		return err
	})
}

// whole looks at the checksum of every chunk.
func (t *transfer) whole(ctx context.Context, f *os.File) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if st.Size() != t.size {
		return fmt.Errorf("%d bytes, want %d: %w", st.Size(), t.size, errs.ErrCorrupt)
	}
	return t.lacking(ctx, f, func(i int, _ []byte) error {
		return fmt.Errorf("%s is damaged: %w", t.from.Name(i), errs.ErrCorrupt)
	})
}
