package mem

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/cr/remote"
)

func TestHole(t *testing.T) {
	for _, c := range []struct {
		name string
		size uint64
		used []Region
		want uint64 // 0: none
	}{
		{"empty", PageSize, nil, holeLow + PageSize},
		{"below the bound", PageSize, []Region{{0x400000, 0x500000}}, holeLow + PageSize},
		{"across the bound", PageSize, []Region{{0x400000, holeLow + 0x5000}}, holeLow + 0x6000},
		{"a gap too small by a page", 2 * PageSize, []Region{{holeLow, holeLow + 0x1000}, {holeLow + 0x4000, holeLow + 0x5000}}, holeLow + 0x6000},
		{"a gap that just fits", 2 * PageSize, []Region{{holeLow, holeLow + 0x1000}, {holeLow + 0x5000, holeLow + 0x6000}}, holeLow + 0x2000},
		{"one within another", PageSize, []Region{{holeLow, holeLow + 0x9000}, {holeLow + 0x1000, holeLow + 0x2000}}, holeLow + 0xa000},
		{"all is used", PageSize, []Region{{holeLow, holeHigh}}, 0},
		{"too much", holeHigh, nil, 0},
		{"so much that it wraps", ^uint64(0) - PageSize, nil, 0},
		{"a region up to the end of the world", PageSize, []Region{{holeLow, ^uint64(0) - PageSize + 1}}, 0},
	} {
		at, err := Hole(c.size, c.used)
		if uint64(at) != c.want || (err != nil) != (c.want == 0) {
			t.Errorf("%s: %x, %v; want %x", c.name, at, err, c.want)
		}
	}
}

// TestHoleIsFree: whatever is in use, a hole has nothing in it or beside it.
func TestHoleIsFree(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	for range 2000 {
		var lists [2][]Region
		for range rnd.IntN(60) {
			at := holeLow - 0x10000 + rnd.Uint64N(256)*PageSize
			i := rnd.IntN(2)
			lists[i] = append(lists[i], Region{at, at + rnd.Uint64N(20)*PageSize})
		}
		size := (1 + rnd.Uint64N(16)) * PageSize
		at, err := Hole(size, lists[0], lists[1])
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range slices.Concat(lists[0], lists[1]) {
			if r.Start < r.End && r.Start < uint64(at)+size+PageSize && uint64(at)-PageSize < r.End {
				t.Fatalf("%x of %x bytes in or beside %x of %v", at, size, r, lists)
			}
		}
	}
}

func TestVdsoMove(t *testing.T) {
	have := Vdso{{0x10000, 0x14000}, {0x14000, 0x16000}}
	at := func(base uint64) Vdso { return have.at(0x10000, base) }
	const via = remote.Addr(0x900000)
	for _, c := range []struct {
		name string
		want Vdso
		to   [][2]uint64 // from, to of each mremap
		err  error
	}{
		{"nothing wanted", nil, nil, nil},
		{"there already", at(0x10000), nil, nil},
		{"elsewhere", at(0x50000), [][2]uint64{{0x10000, 0x50000}, {0x14000, 0x54000}}, nil},
		{"right behind", at(0x16000), [][2]uint64{{0x10000, 0x16000}, {0x14000, 0x1a000}}, nil},
		{"overlapping", at(0x12000), [][2]uint64{{0x10000, 0x900000}, {0x14000, 0x904000}, {0x900000, 0x12000}, {0x904000, 0x16000}}, nil},
		{"overlapping below", at(0xf000), [][2]uint64{{0x10000, 0x900000}, {0x14000, 0x904000}, {0x900000, 0xf000}, {0x904000, 0x13000}}, nil},
		{"another number", at(0x50000)[:1], nil, errs.ErrHost},
		{"another size", Vdso{{0x50000, 0x54000}, {0x54000, 0x55000}}, nil, errs.ErrHost},
		{"another distance", Vdso{{0x50000, 0x54000}, {0x55000, 0x57000}}, nil, errs.ErrHost},
	} {
		calls, err := have.Move(c.want, via)
		if !errors.Is(err, c.err) {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		var to [][2]uint64
		for _, call := range calls {
			to = append(to, [2]uint64{call.Args[0], call.Args[4]})
			if call.NR != unix.SYS_MREMAP || call.Args[1] != call.Args[2] || call.Args[3] != 3 {
				t.Errorf("%s: %+v", c.name, call)
			}
		}
		if !slices.Equal(to, c.to) {
			t.Errorf("%s: %x, want %x", c.name, to, c.to)
		}
	}
	if _, err := Vdso(nil).Move(at(0x50000), via); !errors.Is(err, errs.ErrHost) {
		t.Errorf("no vdso here: %v", err)
	}
}

func TestVdsoOf(t *testing.T) {
	mm := &blob.MM{Vmas: []*blob.VMA{
		{Start: 1, End: 2}, {Start: 3, End: 4, Kind: blob.VMA_VVAR}, {Start: 4, End: 5, Kind: blob.VMA_VVAR}, {Start: 5, End: 6, Kind: blob.VMA_VDSO},
	}, StartBrk: 7, Brk: 9}
	if got := VdsoOf(mm); !slices.Equal(got, Vdso{{3, 4}, {4, 5}, {5, 6}}) {
		t.Errorf("%v", got)
	}
	if got := Regions(mm); len(got) != 5 || got[4] != (Region{7, 9}) {
		t.Errorf("%v: the heap that is not mapped counts", got)
	}
}

func TestMapCall(t *testing.T) {
	const base = unix.MAP_FIXED_NOREPLACE
	for _, c := range []struct {
		name  string
		v     *blob.VMA
		fd    remote.FD
		flags uint64
	}{
		{"anonymous", &blob.VMA{}, -1, base | unix.MAP_PRIVATE | unix.MAP_ANONYMOUS},
		{"private file", &blob.VMA{Offset: 0x3000}, 7, base | unix.MAP_PRIVATE},
		{"shared file", &blob.VMA{Shared: true}, 7, base | unix.MAP_SHARED},
		{"stack", &blob.VMA{Flags: uint64(blob.VMAFlag_VMA_GROWSDOWN)}, -1, base | unix.MAP_PRIVATE | unix.MAP_ANONYMOUS | unix.MAP_GROWSDOWN},
		{"without reserve", &blob.VMA{Flags: uint64(blob.VMAFlag_VMA_NORESERVE)}, -1, base | unix.MAP_PRIVATE | unix.MAP_ANONYMOUS | unix.MAP_NORESERVE},
	} {
		v := c.v
		v.Start, v.End, v.Prot = 0x10000, 0x15000, unix.PROT_READ|unix.PROT_EXEC
		got := MapCall(v, c.fd)
		want := [6]uint64{0x10000, 0x5000, 5, c.flags, uint64(int64(c.fd)), c.v.Offset}
		if got.NR != unix.SYS_MMAP || got.Args != want {
			t.Errorf("%s: %x, want %x", c.name, got.Args, want)
		}
	}
}

func TestAdviceAndSeals(t *testing.T) {
	v := &blob.VMA{Start: 0x1000, End: 0x3000}
	if AdviceCalls(v) != nil || SealCalls(v) != nil {
		t.Error("calls for a plain mapping")
	}
	v.Flags = uint64(blob.VMAFlag_VMA_DONTCOPY | blob.VMAFlag_VMA_WIPEONFORK | blob.VMAFlag_VMA_LOCKED | blob.VMAFlag_VMA_LOCKONFAULT | blob.VMAFlag_VMA_SEALED)
	var got []uint64
	for _, c := range slices.Concat(AdviceCalls(v), SealCalls(v)) {
		got = append(got, uint64(c.NR), c.Args[0], c.Args[1], c.Args[2])
	}
	want := []uint64{
		unix.SYS_MADVISE, 0x1000, 0x2000, unix.MADV_DONTFORK, unix.SYS_MADVISE, 0x1000, 0x2000, unix.MADV_WIPEONFORK,
		unix.SYS_MLOCK2, 0x1000, 0x2000, 1, 462, 0x1000, 0x2000, 0,
	}
	if !slices.Equal(got, want) {
		t.Errorf("%x, want %x", got, want)
	}
}

// TestPrctlMM: struct prctl_mm_map is twelve longs and two ints.
func TestPrctlMM(t *testing.T) {
	b := PrctlMM(&blob.MM{
		StartCode: 1, EndCode: 2, StartData: 3, EndData: 4, StartBrk: 5, Brk: 6, StartStack: 7,
		ArgStart: 8, ArgEnd: 9, EnvStart: 10, EnvEnd: 11, Auxv: make([]byte, 320),
	}, 12)
	if len(b) != mmMapSize {
		t.Fatalf("%d bytes", len(b))
	}
	for i := range 12 {
		if got := binary.LittleEndian.Uint64(b[8*i:]); got != uint64(i+1) {
			t.Errorf("long %d is %d", i, got)
		}
	}
	if size, fd := binary.LittleEndian.Uint32(b[96:]), int32(binary.LittleEndian.Uint32(b[100:])); size != 320 || fd != -1 {
		t.Errorf("auxv_size %d, exe_fd %d", size, fd)
	}
}

func TestVdsoDigest(t *testing.T) {
	a, err := VdsoDigest()
	if err != nil || len(a) != 32 {
		t.Fatalf("%x, %v", a, err)
	}
	if b, err := VdsoDigest(); err != nil || !slices.Equal(a, b) {
		t.Errorf("%x, then %x, %v", a, b, err)
	}
}
