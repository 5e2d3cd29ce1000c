package mem

import (
	"bytes"
	"fmt"
	"os"
	"reflect"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/sys"
)

func TestWatchable(t *testing.T) {
	const big, small = watchTask / PageSize, watchRegion/PageSize - 1
	anon := func(start, pages uint64) *blob.VMA {
		return &blob.VMA{Start: start, End: start + pages*PageSize}
	}
	file := anon(0x9000000, 2*big)
	file.Kind = blob.VMA_FILE
	for name, tc := range map[string]struct {
		vmas    []*blob.VMA
		extents []*blob.Extent
		huge    []*blob.Huge
		want    []Region
	}{
		"nothing":   {},
		"too small": {[]*blob.VMA{anon(0x1000, big)}, []*blob.Extent{{Start: 0x1000, Pages: big - 1}}, nil, nil},
		"all is huge": {
			[]*blob.VMA{anon(HugeSize, 2*big)},
			[]*blob.Extent{{Start: HugeSize, Pages: 2 * big}},
			[]*blob.Huge{{Start: HugeSize, Count: 2 * big * PageSize / HugeSize}},
			nil,
		},
		"a half is huge": {
			[]*blob.VMA{anon(HugeSize, 2*big)},
			[]*blob.Extent{{Start: HugeSize, Pages: 2 * big}},
			[]*blob.Huge{{Start: HugeSize, Count: big * PageSize / HugeSize}},
			[]Region{{HugeSize, HugeSize + 2*watchTask}},
		},
		"one": {[]*blob.VMA{anon(0x1000, big)}, []*blob.Extent{{Start: 0x1000, Pages: big}}, nil, []Region{{0x1000, 0x1000 + watchTask}}},
		"some are too small": {
			[]*blob.VMA{anon(0x1000, 1), anon(0x100000, small+1), anon(0x1000000, big)},
			[]*blob.Extent{{Start: 0x1000, Pages: 1}, {Start: 0x100000, Pages: small}, {Start: 0x1000000, Pages: 16}, {Start: 0x1010000, Pages: big - 16}, {Start: 0x11f0000, Pages: 16}},
			nil,
			[]Region{{0x1000000, 0x1000000 + watchTask}},
		},
		"an extent over two": {
			[]*blob.VMA{anon(0x1000, big), anon(0x1000+watchTask, big)},
			[]*blob.Extent{{Start: 0x1000, Pages: 2 * big}},
			nil,
			[]Region{{0x1000, 0x1000 + watchTask}, {0x1000 + watchTask, 0x1000 + 2*watchTask}},
		},
		"of a file": {[]*blob.VMA{file}, []*blob.Extent{{Start: file.Start, Pages: 2 * big}}, nil, nil},
	} {
		if got := Watchable(tc.vmas, tc.extents, tc.huge); !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%s: %x, want %x", name, got, tc.want)
		}
	}
}

func TestSplit(t *testing.T) {
	const p = PageSize
	target := &TaskTarget{watched: []Region{{4 * p, 6 * p}, {6 * p, 7 * p}, {9 * p, 12 * p}}}
	type part struct {
		at, pages int
		watched   bool
	}
	for name, tc := range map[string]struct {
		at, pages int
		want      []part
	}{
		"before":  {1, 3, []part{{1, 3, false}}},
		"in":      {10, 1, []part{{10, 1, true}}},
		"behind":  {12, 5, []part{{12, 5, false}}},
		"into":    {3, 2, []part{{3, 1, false}, {4, 1, true}}},
		"out":     {5, 3, []part{{5, 1, true}, {6, 1, true}, {7, 1, false}}},
		"through": {3, 12, []part{{3, 1, false}, {4, 2, true}, {6, 1, true}, {7, 2, false}, {9, 3, true}, {12, 3, false}}},
	} {
		var got []part
		from := 5 * p
		err := target.split(run{uint64(tc.at * p), from, from + tc.pages*p}, func(r run, watched bool) error {
			if r.from != from {
				t.Errorf("%s: bytes from %d, want %d", name, r.from, from)
			}
			from = r.to
			got = append(got, part{int(r.addr / p), (r.to - r.from) / p, watched})
			return nil
		})
		if err != nil || !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%s: %v, %v; want %v", name, got, err, tc.want)
		}
	}
}

// ownUserfault makes a userfaultfd of this process.
func ownUserfault(t *testing.T) *os.File {
	t.Helper()
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK|sys.UFFDUserModeOnly, 0, 0)
	needs(t, fmt.Sprintf("userfaultfd(2) (%v)", errno), errno == 0)
	uffd := os.NewFile(fd, "userfaultfd")
	if _, err := sys.UFFDHandshake(uffd, 0); err != nil {
		t.Fatal(err)
	}
	return uffd
}

// TestWatchedTarget fills memory of which some is watched and some is not, and
// one page is there already.
func TestWatchedTarget(t *testing.T) {
	const pages = 64
	b, err := unix.Mmap(-1, 0, pages*PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Munmap(b); err != nil {
			t.Error(err)
		}
	})
	b[20*PageSize] = 1
	base := uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b))))
	target, err := NewTaskTarget(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	target.Watch(ownUserfault(t), []Region{{base + 8*PageSize, base + 32*PageSize}}, nil)
	if len(target.watched) != 1 {
		t.Fatal("the kernel did not take the region")
	}
	raw := noise(7, pages*PageSize)
	if err := target.put(raw, []run{{base, 0, 40 * PageSize}, {base + 50*PageSize, 50 * PageSize, 51 * PageSize}}); err != nil {
		t.Fatal(err)
	}
	if err := target.Close(); err != nil {
		t.Fatal(err)
	}
	want := make([]byte, len(raw))
	copy(want, raw[:40*PageSize])
	copy(want[50*PageSize:], raw[50*PageSize:51*PageSize])
	if !bytes.Equal(b, want) {
		t.Error("the memory is not what was put")
	}
}
