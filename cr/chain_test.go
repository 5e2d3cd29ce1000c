package cr

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/blob/dir"
	"github.com/stasis-cr/stasis/cr/blob/dir/dirtest"
	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/cr/mem"
)

// chainLinks is how many checkpoints the chain of the tests has. The needed chunk of
// spreadLink is in its second file.
const (
	chainLinks = 3
	spreadLink = 1
)

func linkPage(n int) []byte { return bytes.Repeat([]byte{byte('a' + n), 'x'}, mem.PageSize/2) }

// chain writes checkpoints side by side in root, of which each builds upon the
// one before and has one page more. Each has a chunk that nobody needs.
func chain(t *testing.T, root string) (last string) {
	t.Helper()
	var extents []*blob.Extent
	var before *mem.Parent
	for n := range chainLinks {
		last = filepath.Join(root, string(rune('0'+n)))
		extents, before = link(t, last, n, extents, before)
	}
	return last
}

func link(t *testing.T, at string, n int, extents []*blob.Extent, before *mem.Parent) ([]*blob.Extent, *mem.Parent) {
	t.Helper()
	w, err := dir.Create(at)
	ok(t, err)
	img := dirtest.Image(t)
	img.Namespaces.Tmpfs = nil
	f, err := w.Create(PagesFile)
	ok(t, err)
	store := mem.NewStore(f, mem.StoreOptions{Codec: blob.Chunk_S2, Parent: before})
	_, err = store.Put(bytes.Repeat([]byte("nobody's"), mem.PageSize/8))
	ok(t, err)
	chunk, err := store.Put(linkPage(n))
	ok(t, err)
	img.MMs[0].Extents = append(slices.Clone(extents), &blob.Extent{Start: 0x501000 + uint64(n)*mem.PageSize, Pages: 1, Chunk: chunk})
	img.MMs[1].Extents = nil
	img.Pages = store.Index(PagesFile)
	if n == spreadLink {
		more, err := w.Create(pagesFiles()[1])
		ok(t, err)
		moveLast(t, img.Pages, f, more)
	}
	img.Prune()
	ok(t, w.Commit(img))
	digest, err := dir.Digest(at)
	ok(t, err)
	d, err := dir.Open(at)
	ok(t, err)
	defer d.Close()
	return d.Image().MMs[0].Extents, mem.NewParent(d.Image().Pages, "../"+filepath.Base(at), digest)
}

// moveLast takes the last chunk of f, the only file of a store, to a second one.
func moveLast(t *testing.T, index *blob.PageStore, f, more *os.File) {
	t.Helper()
	c := index.Chunks[len(index.Chunks)-1]
	b := make([]byte, c.Stored)
	_, err := f.ReadAt(b, int64(c.Offset))
	ok(t, err)
	_, err = more.Write(b)
	ok(t, err)
	ok(t, f.Truncate(int64(c.Offset)))
	index.Size = c.Offset
	index.More = []*blob.PageFile{{File: pagesFiles()[1], Size: uint64(c.Stored)}}
	c.Store, c.Offset = uint32(index.Stores()-1), 0
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// checkChain reads every page of the last link, wherever it lies.
func checkChain(t *testing.T, at string, parents int) {
	t.Helper()
	d, err := dir.Open(at)
	ok(t, err)
	defer d.Close()
	img := d.Image()
	if len(img.Pages.Parents) != parents {
		t.Fatalf("%d parents, want %d", len(img.Pages.Parents), parents)
	}
	p, err := openPages(d)
	ok(t, err)
	defer p.close()
	buf := make([]byte, mem.ChunkSize)
	for n, e := range img.MMs[0].Extents {
		b, err := p.Chunk(int(e.Chunk), buf)
		ok(t, err)
		if !bytes.Equal(b, linkPage(n)) {
			t.Errorf("page %d is %.8q", n, b)
		}
	}
	if got, err := Verify(t.Context(), VerifyOptions{ImageDir: at}); err != nil || len(got.Damage) > 0 {
		t.Errorf("verify: %v, %v", got.Damage, err)
	}
}

func TestChain(t *testing.T) {
	root := t.TempDir()
	last := chain(t, root)
	checkChain(t, last, chainLinks-1)
	ok(t, os.Rename(root, root+"-moved")) // with all that is in it
	checkChain(t, filepath.Join(root+"-moved", filepath.Base(last)), chainLinks-1)
}

func TestFlattenChain(t *testing.T) {
	root := t.TempDir()
	last := chain(t, root)
	flat := filepath.Join(t.TempDir(), "flat")
	ok(t, Flatten(t.Context(), FlattenOptions{ImageDir: last, OutDir: flat}))
	ok(t, os.RemoveAll(root))
	checkChain(t, flat, 0)
	d, err := dir.Open(flat)
	ok(t, err)
	defer d.Close()
	if n := len(d.Image().Pages.Chunks); n != chainLinks {
		t.Errorf("%d chunks, want the %d that are needed", n, chainLinks)
	}
}

// TestBrokenChain refuses a checkpoint that needs one which is missing, damaged
// or another, and names it; nothing half is left of a flattening.
func TestBrokenChain(t *testing.T) {
	for name, c := range map[string]struct {
		spoil  func(t *testing.T, root string)
		want   error
		opened bool // the damage shows only when pages are read
	}{
		"missing": {spoil: func(t *testing.T, root string) { ok(t, os.RemoveAll(root+"/0")) }, want: os.ErrNotExist},
		"another": {spoil: func(t *testing.T, root string) {
			ok(t, os.RemoveAll(root+"/0"))
			dirtest.Write(t, root+"/0")
		}, want: errs.ErrCorrupt},
		"cut": {spoil: func(t *testing.T, root string) { ok(t, os.Truncate(root+"/1/"+pagesFiles()[spreadLink], 9)) }, want: errs.ErrCorrupt},
		"flipped": {spoil: func(t *testing.T, root string) {
			b, err := os.ReadFile(root + "/0/" + PagesFile)
			ok(t, err)
			b[len(b)-1] ^= 1
			ok(t, os.WriteFile(root+"/0/"+PagesFile, b, 0o600))
		}, want: errs.ErrCorrupt, opened: true},
		"a link": {spoil: func(t *testing.T, root string) {
			ok(t, os.Rename(root+"/0/"+PagesFile, root+"/elsewhere"))
			ok(t, os.Symlink(root+"/elsewhere", root+"/0/"+PagesFile))
		}, want: errs.ErrCorrupt},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			last := chain(t, root)
			c.spoil(t, root)
			d, err := dir.Open(last)
			ok(t, err)
			defer d.Close()
			p, err := openPages(d)
			if c.opened {
				ok(t, err)
				ok(t, p.close())
			} else if !errors.Is(err, c.want) {
				t.Errorf("opened: %v, want %v", err, c.want)
			}
			flat := filepath.Join(t.TempDir(), "flat")
			if err := Flatten(t.Context(), FlattenOptions{ImageDir: last, OutDir: flat}); !errors.Is(err, c.want) {
				t.Errorf("flattened: %v, want %v", err, c.want)
			}
			if _, err := os.Lstat(flat); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("something is left: %v", err)
			}
			if got, err := Verify(t.Context(), VerifyOptions{ImageDir: last}); err != nil || len(got.Damage) == 0 {
				t.Errorf("verify: %v, %v", got.Damage, err)
			}
		})
	}
}
