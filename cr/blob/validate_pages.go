package blob

import (
	"cmp"
	"fmt"
	gopath "path"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/stasis-cr/stasis/cr/errs"
)

// pages checks the index of the page store: chunks fill it without a gap, in any
// order.
func (v *validator) pages() error {
	p := v.img.Pages
	if p == nil {
		return nil
	}
	if p.File != "" || p.Size != 0 || len(p.More) > 0 {
		if err := v.fileName(p.File); err != nil {
			return in(err, "page store")
		}
	}
	if err := v.more(); err != nil {
		return err
	}
	for i, s := range p.Parents {
		if err := v.parent(s); err != nil {
			return in(err, "parent %d", i+1)
		}
	}
	for i, c := range p.Chunks {
		if err := c.check(); err != nil {
			return in(err, "chunk %d", i)
		}
		if err := p.placed(c); err != nil {
			return in(err, "chunk %d", i)
		}
	}
	return p.tiles()
}

// Bounds of what a page store is spread over.
const (
	maxMore      = 1 << 6
	maxParents   = 1 << 12
	maxParentDir = 1 << 12
	digestSize   = 32
)

// more checks the further files that the store is spread over.
func (v *validator) more() error {
	for i, f := range v.img.Pages.More {
		err := v.fileName(f.File)
		if i >= maxMore {
			err = bad("one of %d", len(v.img.Pages.More))
		}
		if err != nil {
			return in(err, "further file %d", i+1)
		}
	}
	return nil
}

// parent checks where an earlier checkpoint is said to be: beside this one or
// beside a folder above it. What lies there must have the digest.
func (v *validator) parent(s *ParentStore) error {
	if len(v.img.Pages.Parents) > maxParents {
		return bad("one of %d", len(v.img.Pages.Parents))
	}
	if len(s.State) != digestSize {
		return bad("a digest of %d bytes", len(s.State))
	}
	if len(s.Dir) > maxParentDir || s.Dir == "." || s.Dir != gopath.Clean(s.Dir) || gopath.IsAbs(s.Dir) || strings.ContainsRune(s.Dir, 0) {
		return bad("directory %q", s.Dir)
	}
	return plainName(s.File)
}

// placed checks that a chunk of an earlier checkpoint lies in a file of it.
// Those of this one are checked together.
func (p *PageStore) placed(c *Chunk) error {
	if uint64(c.Store) >= uint64(p.Stores()) {
		return bad("store %d of %d", c.Store, p.Stores()-1)
	}
	if p.Owns(c.Store) {
		return nil
	}
	if size := p.Parents[c.Store-1].Size; c.Offset > size || uint64(c.Stored) > size-c.Offset {
		return bad("%d bytes at %d of a store of %d", c.Stored, c.Offset, size)
	}
	return nil
}

// check looks at one chunk alone.
func (c *Chunk) check() error {
	switch {
	case c.Raw == 0 || c.Raw%pageSize != 0 || c.Raw > maxRaw:
		return bad("%d bytes of pages", c.Raw)
	case c.Codec < Chunk_RAW || c.Codec > Chunk_ZSTD:
		return fmt.Errorf("codec %d: %w", c.Codec, errs.ErrVersion)
	case c.Stored == 0 || c.Stored > c.Raw || (c.Stored == c.Raw) != (c.Codec == Chunk_RAW):
		return bad("%d bytes stored for %d by %s", c.Stored, c.Raw, c.Codec)
	}
	return nil
}

// tiles checks that the chunks of each file of this store, in the order of their
// offsets, lie back to back from 0 to the end of it: no byte is in two of them, or in
// none.
func (p *PageStore) tiles() error {
	order := make([]int, 0, len(p.Chunks))
	for i, c := range p.Chunks {
		if p.Owns(c.Store) {
			order = append(order, i)
		}
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(p.Chunks[a].Offset, p.Chunks[b].Offset) })
	end := make([]uint64, p.Stores()) // of the chunks in each so far
	for _, i := range order {
		c := p.Chunks[i]
		if c.Offset != end[c.Store] {
			return bad("chunk %d: at %d, want %d", i, c.Offset, end[c.Store])
		}
		end[c.Store] += uint64(c.Stored)
	}
	if end[0] != p.Size {
		return bad("page store: %d bytes, but chunks of %d", p.Size, end[0])
	}
	for i, f := range p.More {
		if at := end[1+len(p.Parents)+i]; at != f.Size || at == 0 {
			return bad("page store: %s: %d bytes, but chunks of %d", f.File, f.Size, at)
		}
	}
	return nil
}

// pagesWere refuses what older revisions of PageStore could not say: 2 had one file,
// and 1 knew no parent and no codec, and had its chunks in the order of the file.
func pagesWere(rev uint16, m proto.Message) error {
	p, ok := m.(*PageStore)
	if !ok {
		return fmt.Errorf("%T is no page store: %w", m, errs.ErrCorrupt)
	}
	if len(p.More) > 0 {
		return bad("further files in revision %d", rev)
	}
	if rev > 1 {
		return nil
	}
	if len(p.Parents) > 0 {
		return bad("parents in revision %d", rev)
	}
	var last uint64
	for i, c := range p.Chunks {
		if c.Store != 0 {
			return bad("chunk %d: store %d in revision %d", i, c.Store, rev)
		}
		if c.Codec != Chunk_RAW || c.Offset < last {
			return bad("chunk %d: codec %d at %d in revision %d", i, c.Codec, c.Offset, rev)
		}
		last = c.Offset
	}
	return nil
}

// extents checks a list of page runs: ascending, disjoint, inside of chunks, and
// each such that covers agrees. It answers the number of pages.
func (v *validator) extents(list []*Extent, covers func(start, end uint64) bool) (uint64, error) {
	chunks := v.img.Pages.GetChunks()
	var last, pages uint64
	for _, e := range list {
		if e.Start%pageSize != 0 || e.Pages == 0 || e.Start > maxOffset || e.Start < last {
			return 0, bad("pages at %x: %d of them, the ones before end at %x", e.Start, e.Pages, last)
		}
		if uint64(e.Chunk) >= uint64(len(chunks)) {
			return 0, bad("pages at %x: no chunk %d", e.Start, e.Chunk)
		}
		if have := uint64(chunks[e.Chunk].Raw / pageSize); uint64(e.Page)+uint64(e.Pages) > have {
			return 0, bad("pages at %x: %d from page %d of chunk %d, which has %d", e.Start, e.Pages, e.Page, e.Chunk, have)
		}
		last = e.Start + uint64(e.Pages)*pageSize
		if !covers(e.Start, last) {
			return 0, bad("pages at %x: %d of them: nothing to put them in", e.Start, e.Pages)
		}
		pages += uint64(e.Pages)
	}
	return pages, nil
}

// contents checks bytes without a name. Each of their pages is stored for itself,
// so that they can't grow beyond what the store holds: they are filled outside of
// the container's memory limit.
func (v *validator) contents() (err error) {
	if v.contentsByID, err = index("contents", v.img.Contents); err != nil {
		return err
	}
	var stored, used uint64
	for _, c := range v.img.Pages.GetChunks() {
		stored += uint64(c.Raw / pageSize)
	}
	for _, c := range v.img.Contents {
		if c.Size > maxOffset {
			return bad("contents %d: %d bytes", c.Id, c.Size)
		}
		end := (c.Size + pageSize - 1) &^ (pageSize - 1)
		n, err := v.extents(c.Extents, func(_, e uint64) bool { return e <= end })
		if err != nil {
			return in(err, "contents %d", c.Id)
		}
		if used += n; used > stored {
			return bad("contents %d: more pages than are stored", c.Id)
		}
	}
	return nil
}
