package blob

import (
	"slices"
	"testing"
)

// TestPrune keeps what pages lie in and the image's own chunks, and every page
// where it was.
func TestPrune(t *testing.T) {
	names := []string{"../a", "../b", "../c"}
	img := &Image{Pages: &PageStore{}}
	for _, n := range names {
		img.Pages.Parents = append(img.Pages.Parents, &ParentStore{Dir: n})
	}
	img.Pages.More = []*PageFile{{File: "pages-2.img"}}
	for i, store := range []uint32{1, 0, 2, 3, 0, 3, 4} {
		img.Pages.Chunks = append(img.Pages.Chunks, &Chunk{Store: store, Crc: uint32(i)})
	}
	img.MMs = []*MM{{Extents: []*Extent{{Chunk: 5, Page: 1}, {Chunk: 0, Page: 2}}}}
	img.Contents = []*Contents{{Extents: []*Extent{{Chunk: 1, Page: 3}}}}
	img.Prune()
	var dirs []string
	for _, p := range img.Pages.Parents {
		dirs = append(dirs, p.Dir)
	}
	if !slices.Equal(dirs, []string{"../a", "../c"}) {
		t.Errorf("parents: %v", dirs)
	}
	var crcs []uint32
	for _, c := range img.Pages.Chunks {
		crcs = append(crcs, c.Crc)
	}
	if !slices.Equal(crcs, []uint32{0, 1, 4, 5, 6}) {
		t.Errorf("chunks: %v", crcs)
	}
	if c := img.Pages.Chunks[4]; c.Store != 3 {
		t.Errorf("the chunk in the second file is in store %d", c.Store)
	}
	at := func(e *Extent) (uint32, string) {
		c := img.Pages.Chunks[e.Chunk]
		if c.Store == 0 {
			return c.Crc, ""
		}
		return c.Crc, img.Pages.Parents[c.Store-1].Dir
	}
	for i, want := range []struct {
		crc uint32
		dir string
	}{{5, "../c"}, {0, "../a"}} {
		if crc, dir := at(img.MMs[0].Extents[i]); crc != want.crc || dir != want.dir {
			t.Errorf("extent %d is in chunk %d of %q, want %+v", i, crc, dir, want)
		}
	}
	if crc, dir := at(img.Contents[0].Extents[0]); crc != 1 || dir != "" {
		t.Errorf("contents are in chunk %d of %q", crc, dir)
	}
}
