package cr

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"google.golang.org/protobuf/proto"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/blob/dir"
	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/cr/mem"
	"github.com/stasis-cr/stasis/cr/object"
)

// VerifyOptions says what to verify.
type VerifyOptions struct {
	ImageDir string
	Progress func(Progress) // nil: none
}

// Verified is what a verification has seen.
type Verified struct {
	ID       string // of the container
	Chunks   int
	Archives int
	Bytes    int64 // of the page store and the archives
	Damage   []error
}

// Verify reads all of an image, as a restore would and more, and lists what is
// damaged. It needs neither privilege nor the container's host. The error says
// that there is no list: no image, or a state that can't be read.
func Verify(ctx context.Context, o VerifyOptions) (_ Verified, err error) {
	image, err := dir.OpenState(o.ImageDir)
	if err != nil {
		return Verified{}, err
	}
	defer func() { err = errors.Join(err, image.Close()) }()
	img := image.Image()
	v := &verifier{image: image, img: img, chunks: map[int]error{}}
	v.out = Verified{ID: img.Container.GetId(), Chunks: len(img.Pages.GetChunks())}
	for _, c := range img.Pages.GetChunks() {
		v.out.Bytes += int64(c.Stored)
	}
	for _, t := range img.Namespaces.GetTmpfs() {
		v.out.Bytes += int64(t.Size)
	}
	stop := watch(ctx, o.Progress, "verify", func() (int64, int64) { return v.done.Load(), v.out.Bytes })
	defer stop()
	if err := v.pages(ctx); err != nil {
		return v.out, err
	}
	return v.out, v.archives(ctx)
}

// verifier collects damage.
type verifier struct {
	image *dir.Dir
	img   *blob.Image
	out   Verified
	done  atomic.Int64 // bytes

	mu     sync.Mutex
	chunks map[int]error // that are damaged
}

// pages checks the chunks, wherever they lie.
func (v *verifier) pages(ctx context.Context) (err error) {
	p := v.img.Pages
	if p == nil {
		return nil
	}
	stores, closeAll := v.stores()
	defer func() { err = errors.Join(err, closeAll()) }()
	err = mem.OpenPages(p, stores...).Check(ctx, func(i int, err error) error {
		v.done.Add(int64(p.Chunks[i].Stored))
		if _, lost := stores[p.Chunks[i].Store].(lostStore); err != nil && !lost {
			v.mu.Lock()
			defer v.mu.Unlock()
			v.chunks[i] = err
		}
		return nil
	})
	v.nameHolders()
	return err
}

// lostStore is a store that could not be opened, which has been said.
type lostStore struct{ err error }

func (s lostStore) ReadAt([]byte, int64) (int, error) { return 0, s.err }

// stores opens what there is of the image's store and of those of earlier
// checkpoints that it needs.
func (v *verifier) stores() (stores []io.ReaderAt, closeAll func() error) {
	var files []*os.File
	add := func(f *os.File, err error) {
		if err != nil {
			v.out.Damage = append(v.out.Damage, err)
		}
		if f == nil {
			stores = append(stores, lostStore{err})
			return
		}
		files = append(files, f)
		stores = append(stores, f)
	}
	own := func(name string) {
		f, sized, err := v.image.OpenAsIs(name)
		add(f, errors.Join(err, sized))
	}
	if v.img.Pages.File == "" {
		add(nil, nil)
	} else {
		own(v.img.Pages.File)
	}
	for _, p := range v.img.Pages.Parents {
		add(v.image.Parent(p))
	}
	for _, f := range v.img.Pages.More {
		own(f.File)
	}
	return stores, func() error {
		var all error
		for _, f := range files {
			all = errors.Join(all, f.Close())
		}
		return all
	}
}

// nameHolders makes the errors of chunks say whose pages these hold, and how many.
func (v *verifier) nameHolders() {
	if len(v.chunks) == 0 {
		return
	}
	held := map[int][]string{}
	note := func(who string, extents []*blob.Extent) {
		for i, pages := range v.pagesIn(extents) {
			held[i] = append(held[i], fmt.Sprintf("%s (%d)", who, pages))
		}
	}
	for _, p := range v.img.Processes {
		for _, m := range v.img.MMs {
			if p.Mm == m.Id {
				note(fmt.Sprintf("pid %d", p.Pid), m.Extents)
			}
		}
	}
	for _, c := range v.img.Contents {
		note(contentsName(v.img, c.Id), c.Extents)
	}
	for _, i := range slices.Sorted(maps.Keys(v.chunks)) {
		who := cmp.Or(strings.Join(held[i], ", "), "nobody")
		v.out.Damage = append(v.out.Damage, fmt.Errorf("%w: pages of %s", v.chunks[i], who))
	}
}

// pagesIn counts the pages that extents have in damaged chunks.
func (v *verifier) pagesIn(extents []*blob.Extent) map[int]int {
	n := map[int]int{}
	for _, e := range extents {
		if v.chunks[int(e.Chunk)] != nil {
			n[int(e.Chunk)] += int(e.Pages)
		}
	}
	return n
}

// contentsName says in words what contents are.
func contentsName(img *blob.Image, id uint32) string {
	for _, m := range img.MMs {
		for _, v := range m.Vmas {
			if v.Kind == blob.VMA_SHMEM && v.Contents == id {
				return "shared memory at " + errs.Range{Start: v.Start, End: v.End}.String()
			}
		}
	}
	for _, f := range img.Files {
		if bodyContents(f) == id {
			return fmt.Sprintf("%s %q", f.Kind, f.Name)
		}
	}
	return fmt.Sprintf("contents %d", id)
}

// bodyContents is the id of the contents that a file has, 0 if it has none.
func bodyContents(f *blob.File) uint32 {
	for _, k := range object.Kinds() {
		if k.Tag != f.Kind {
			continue
		}
		body := k.New()
		if proto.Unmarshal(f.Body, body) != nil { // impossible after validation
			return 0
		}
		if c, ok := body.(interface{ GetContents() uint32 }); ok {
			return c.GetContents()
		}
	}
	return 0
}

// archives checks the archives of tmpfs.
func (v *verifier) archives(ctx context.Context) error {
	for _, t := range v.img.Namespaces.GetTmpfs() {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if t.Archive == "" {
			continue
		}
		v.out.Archives++
		if err := v.archive(t); err != nil {
			v.out.Damage = append(v.out.Damage, fmt.Errorf("%w: tmpfs %s", err, t.Mountpoint))
		}
		v.done.Add(int64(t.Size))
	}
	return nil
}

func (v *verifier) archive(t *blob.Tmpfs) (err error) {
	f, _, err := v.image.OpenAsIs(t.Archive) // the sum tells the size, too
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return checkSum(f, t)
}
