package cr

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/blob/dir"
	"github.com/stasis-cr/stasis/cr/blob/dir/dirtest"
	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/cr/mem"
)

const (
	pages  = 40 // in each chunk
	shared = 50 // contents of shared memory, chunks 3 and 4
	ghost  = 51 // contents of a deleted file, chunk 5
)

// packed writes an image with chunks of every codec, whose pages belong to tasks,
// to shared memory and to a file; chunk 6 to nobody.
func packed(t *testing.T) string {
	t.Helper()
	path := t.TempDir()
	img := dirtest.Image(t)
	w, err := dir.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	dirtest.Fill(t, w)
	f, err := w.Create("packed.img")
	if err != nil {
		t.Fatal(err)
	}
	img.Pages = store(t, f)
	img.MMs[0].Extents = []*blob.Extent{{Start: 0x501000, Pages: 1}, {Start: 0x502000, Pages: 2, Chunk: 1, Page: 3}}
	img.MMs[1].Extents = []*blob.Extent{{Start: 0x501000, Pages: 1, Chunk: 2}, {Start: 0x502000, Pages: 1, Chunk: 1, Page: 3}}
	img.MMs[1].Vmas = append(img.MMs[1].Vmas, &blob.VMA{
		Start: 0x600000, End: 0x600000 + 2*pages*mem.PageSize, Prot: 3, Kind: blob.VMA_SHMEM, Shared: true, Contents: shared,
	})
	img.Contents = []*blob.Contents{
		{Id: shared, Size: 2 * pages * mem.PageSize, Extents: []*blob.Extent{
			{Pages: pages, Chunk: 3}, {Start: pages * mem.PageSize, Pages: pages, Chunk: 4},
		}},
		{Id: ghost, Size: pages * mem.PageSize, Extents: []*blob.Extent{{Pages: pages, Chunk: 5}}},
	}
	body, err := proto.Marshal(&blob.GhostFile{Path: "/tmp/gone", Mode: 0o100600, Contents: ghost, Inode: 1})
	if err != nil {
		t.Fatal(err)
	}
	img.Files = append(img.Files, &blob.File{Id: 9, Kind: "ghost", Rev: 1, Body: body, Name: "/tmp/gone (deleted)"})
	if err := w.Commit(img); err != nil {
		t.Fatal(err)
	}
	return path
}

// store fills a page store with seven chunks.
func store(t *testing.T, f *os.File) *blob.PageStore {
	t.Helper()
	text := make([]byte, pages*mem.PageSize)
	for i := range text {
		text[i] = byte(i/7) & 0x3f
	}
	s := mem.NewStore(f, mem.StoreOptions{Codec: blob.Chunk_S2})
	for range 5 {
		if _, err := s.Put(text); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if _, err := s.PutRaw(text); err != nil {
			t.Fatal(err)
		}
	}
	return s.Index("packed.img")
}

func verify(t *testing.T, path string) []error {
	t.Helper()
	v, err := Verify(t.Context(), VerifyOptions{ImageDir: path})
	if err != nil {
		return []error{err}
	}
	if v.ID != "c1" || v.Chunks != 7 || v.Archives != 1 {
		t.Errorf("seen: %+v", v)
	}
	return v.Damage
}

func change(t *testing.T, path string, f func([]byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(path, f(b), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestVerifyFindsAll damages every chunk and the archive: each is named, with
// where it lies and who needs it.
func TestVerifyFindsAll(t *testing.T) {
	path := packed(t)
	if found := verify(t, path); len(found) > 0 {
		t.Fatalf("a good image: %v", found)
	}
	d, err := dir.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	change(t, filepath.Join(path, "packed.img"), func(b []byte) []byte {
		for _, c := range d.Image().Pages.Chunks {
			b[c.Offset+uint64(c.Stored)/2] ^= 4
		}
		return b
	})
	change(t, filepath.Join(path, dirtest.Tmpfs), func(b []byte) []byte { return b[:len(b)-1] })
	found := verify(t, path)
	want := []string{
		"chunk 0 at 0 of packed.img: *pages of pid 1 (1)", "chunk 1 *pages of pid 1 (2), pid 7 (1)", "chunk 2 *pages of pid 7 (1)",
		"chunk 3 *pages of shared memory at mapping 600000-*(40)", "chunk 4 *pages of shared memory",
		`chunk 5 *pages of ghost "/tmp/gone (deleted)" (40)`, "chunk 6 *pages of nobody", "tmpfs-1.tar: *1024*tmpfs /run",
	}
	if len(found) != len(want) {
		t.Fatalf("%d found: %v", len(found), errors.Join(found...))
	}
	for i, err := range found {
		rest := err.Error()
		for part := range strings.SplitSeq(want[i], "*") {
			_, after, ok := strings.Cut(rest, part)
			if !ok {
				t.Errorf("%v: want %s", err, want[i])
			}
			rest = after
		}
		if !errors.Is(err, errs.ErrCorrupt) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v: no class or no line", err)
		}
	}
}

// TestVerifyFindsAny changes one bit anywhere, in any file.
func TestVerifyFindsAny(t *testing.T) {
	path := packed(t)
	for _, name := range []string{blob.StateFile, "packed.img", dirtest.Tmpfs} {
		for range 40 {
			var at int
			var bit byte
			flip := func(b []byte) []byte {
				b[at] ^= bit
				return b
			}
			change(t, filepath.Join(path, name), func(b []byte) []byte {
				at, bit = rand.IntN(len(b)), 1<<rand.IntN(8)
				return flip(b)
			})
			if len(verify(t, path)) != 1 {
				t.Errorf("%s: byte %d with bit %#x changed: not found", name, at, bit)
			}
			change(t, filepath.Join(path, name), flip)
		}
	}
	if found := verify(t, path); len(found) > 0 {
		t.Errorf("changed back: %v", found)
	}
}

func TestVerifySizes(t *testing.T) {
	for name, c := range map[string]struct {
		do   func(t *testing.T, path string)
		want []string
	}{
		"no pages": {func(t *testing.T, path string) {
			t.Helper()
			if err := os.Remove(filepath.Join(path, "packed.img")); err != nil {
				t.Fatal(err)
			}
		}, []string{"packed.img is missing"}},
		"pages cut": {func(t *testing.T, path string) {
			t.Helper()
			change(t, filepath.Join(path, "packed.img"), func(b []byte) []byte { return b[:len(b)-1] })
		}, []string{"packed.img has", "chunk 6"}},
		"pages grown": {func(t *testing.T, path string) {
			t.Helper()
			change(t, filepath.Join(path, "packed.img"), func(b []byte) []byte { return append(b, 0) })
		}, []string{"packed.img has"}},
		"archive grown": {func(t *testing.T, path string) {
			t.Helper()
			change(t, filepath.Join(path, dirtest.Tmpfs), func(b []byte) []byte { return append(b, 0) })
		}, []string{"1025 bytes"}},
		"no state": {func(t *testing.T, path string) {
			t.Helper()
			if err := os.Remove(filepath.Join(path, blob.StateFile)); err != nil {
				t.Fatal(err)
			}
		}, []string{"not a stasis checkpoint"}},
	} {
		t.Run(name, func(t *testing.T) {
			path := packed(t)
			c.do(t, path)
			found := verify(t, path)
			if len(found) != len(c.want) {
				t.Fatalf("%v", found)
			}
			for i, err := range found {
				if !strings.Contains(err.Error(), c.want[i]) {
					t.Errorf("%v: want %s", err, c.want[i])
				}
			}
		})
	}
}

func TestVerifyStops(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Verify(ctx, VerifyOptions{ImageDir: packed(t)}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
