package mem

import (
	"context"
	"fmt"
	"os"
	"sync/atomic"

	"github.com/stasis-cr/stasis/cr/blob"
)

// run is a piece of a chunk and where it belongs: an address, or an offset.
type run struct {
	addr     uint64
	from, to int // in the chunk's raw bytes
}

// Target takes pages on their way back.
type Target interface {
	put(raw []byte, runs []run) error
}

// use is all that one target needs of one chunk.
type use struct {
	target Target
	runs   []run
}

// Plan says for each chunk of a page store who needs which of its pages. Its
// zero value is not ready: use NewPlan. Chunk and page numbers were checked when
// the image was validated.
type Plan struct {
	uses  [][]use
	bytes int64
	done  atomic.Int64
}

// NewPlan returns a plan that wants nothing.
func NewPlan(store *blob.PageStore) *Plan {
	return &Plan{uses: make([][]use, len(store.GetChunks()))}
}

// Want adds extents that belong to t.
func (p *Plan) Want(extents []*blob.Extent, t Target) {
	for _, e := range extents {
		from := int(e.Page) * PageSize
		r := run{e.Start, from, from + int(e.Pages)*PageSize}
		p.bytes += int64(r.to - r.from)
		u := p.uses[e.Chunk]
		if n := len(u); n > 0 && u[n-1].target == t {
			u[n-1].runs = append(u[n-1].runs, r)
			continue
		}
		p.uses[e.Chunk] = append(u, use{t, []run{r}})
	}
}

// Progress returns the bytes put and the bytes wanted.
func (p *Plan) Progress() (done, total int64) { return p.done.Load(), p.bytes }

// Fill reads each chunk that is wanted once, checks it and puts its pages. pages
// is of the store that the plan was made for.
func (p *Plan) Fill(ctx context.Context, pages *Pages) error {
	return spread(ctx, len(p.uses), func(i int, buf []byte) error {
		if len(p.uses[i]) == 0 {
			return nil
		}
		return p.fillChunk(pages, i, buf)
	})
}

func (p *Plan) fillChunk(pages *Pages, i int, buf []byte) error {
	raw, err := pages.Chunk(i, buf)
	if err != nil {
		return err
	}
	for _, u := range p.uses[i] {
		if err := u.target.put(raw, u.runs); err != nil {
			return err
		}
		for _, r := range u.runs {
			p.done.Add(int64(r.to - r.from))
		}
	}
	return nil
}

// fileTarget writes into a file of a known size: the last page may end early.
type fileTarget struct {
	f    *os.File
	size uint64
}

func (t *fileTarget) put(raw []byte, runs []run) error {
	for _, r := range runs {
		b := raw[r.from:r.to]
		if left := t.size - min(t.size, r.addr); uint64(len(b)) > left {
			b = b[:left]
		}
		if _, err := t.f.WriteAt(b, int64(r.addr)); err != nil {
			return fmt.Errorf("%s at %d: %w", t.f.Name(), r.addr, err)
		}
	}
	return nil
}

// RestoreContents gives f, which is empty, the size and the bytes of c.
func RestoreContents(ctx context.Context, c *blob.Contents, pages *Pages, f *os.File) error {
	if err := f.Truncate(int64(c.Size)); err != nil {
		return err
	}
	p := NewPlan(pages.index)
	p.Want(c.Extents, &fileTarget{f, c.Size})
	return p.Fill(ctx, pages)
}
