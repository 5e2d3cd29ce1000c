package object

import (
	"context"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"unsafe"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/remote"

	"golang.org/x/sys/unix"
)

// table is a descriptor table that behaves as the kernel's.
type table struct {
	fds     map[uint64]*os.File
	cloexec map[uint64]bool
	at      remote.FD
}

func (k *table) FD() remote.FD { return k.at }

func (k *table) Send(_ context.Context, _ remote.Caller, files []*os.File) (at []remote.FD, _ error) {
	for _, f := range files {
		n := uint64(0)
		for k.fds[n] != nil {
			n++
		}
		k.fds[n], k.cloexec[n] = f, true
		at = append(at, remote.FD(n))
	}
	return at, nil
}

func (k *table) Call(ctx context.Context, nr uintptr, args ...uint64) (uint64, error) {
	c := remote.Call{NR: nr}
	copy(c.Args[:], args)
	k.do(&c)
	return c.Result()
}

func (k *table) Batch(_ context.Context, calls []remote.Call) error {
	for i := range calls {
		k.do(&calls[i])
	}
	return nil
}

func (k *table) do(c *remote.Call) {
	a := c.Args
	switch c.NR {
	case unix.SYS_CLOSE_RANGE:
		for n := range k.fds {
			if n >= a[0] && n <= a[1] {
				delete(k.fds, n)
			}
		}
	case unix.SYS_DUP3:
		k.fds[a[1]], k.cloexec[a[1]] = k.fds[a[0]], a[2]&unix.O_CLOEXEC != 0
	case unix.SYS_CLOSE:
		delete(k.fds, a[0])
	case unix.SYS_FCNTL:
		k.cloexec[a[0]] = a[2]&unix.FD_CLOEXEC != 0
	default:
		c.Ret = ^uint64(0)
	}
}

func (k *table) Push([]byte) (remote.Addr, error) { return 0, nil }
func (k *table) Read(remote.Addr, []byte) error   { return nil }
func (k *table) Write(remote.Addr, []byte) error  { return nil }
func (k *table) Reset()                           {}

// TestInstall puts random tables into place and looks where everything went.
func TestInstall(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		r := &Restorer{byID: map[uint32]*record{}}
		tab := &blob.FDTable{}
		used := map[int32]bool{}
		for range rnd.IntN(350) {
			fd := int32(rnd.IntN(10 + rnd.IntN(500)))
			id := uint32(1 + rnd.IntN(100))
			if used[fd] {
				continue
			}
			used[fd] = true
			tab.Fds = append(tab.Fds, &blob.FD{Fd: fd, File: id, Cloexec: rnd.IntN(2) == 0})
			if r.byID[id] == nil {
				r.byID[id] = &record{file: &blob.File{Id: id}, open: os.NewFile(uintptr(1000+id), strconv.FormatUint(uint64(id), 10))}
			}
		}
		at := FreeFD([]*blob.FDTable{tab})
		channel := os.NewFile(999, "channel")
		k := &table{cloexec: map[uint64]bool{}, at: at}
		k.fds = map[uint64]*os.File{0: channel, 1: channel, 7: channel, uint64(at): channel}
		ok(t, r.Install(t.Context(), k, k, tab))
		if len(k.fds) != len(tab.Fds)+1 || k.fds[uint64(at)] != channel {
			t.Fatalf("seed %d: %d descriptors, want %d", seed, len(k.fds), len(tab.Fds)+1)
		}
		for _, fd := range tab.Fds {
			n := uint64(fd.Fd)
			if k.fds[n] != r.byID[fd.File].open || k.cloexec[n] != fd.Cloexec {
				t.Fatalf("seed %d: descriptor %d is wrong", seed, fd.Fd)
			}
		}
	}
}

func TestInstallRefuses(t *testing.T) {
	r := &Restorer{byID: map[uint32]*record{}}
	k := &table{at: 9}
	for name, tab := range map[string]*blob.FDTable{
		"twice":    {Fds: []*blob.FD{{Fd: 1, File: 1}, {Fd: 1, File: 2}}},
		"negative": {Fds: []*blob.FD{{Fd: -1, File: 1}}},
		"channel":  {Fds: []*blob.FD{{Fd: 9, File: 1}}},
	} {
		if err := r.Install(t.Context(), k, k, tab); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

// self makes calls in the test's own process.
type self struct{ pushed [][]byte }

func (s *self) Call(ctx context.Context, nr uintptr, args ...uint64) (uint64, error) {
	c := []remote.Call{{NR: nr}}
	copy(c[0].Args[:], args)
	if err := s.Batch(ctx, c); err != nil {
		return 0, err
	}
	return c[0].Result()
}

func (s *self) Batch(_ context.Context, calls []remote.Call) error {
	for i := range calls {
		a := calls[i].Args
		r, _, errno := unix.Syscall6(calls[i].NR, uintptr(a[0]), uintptr(a[1]), uintptr(a[2]), uintptr(a[3]),
			uintptr(a[4]), uintptr(a[5]))
		calls[i].Ret = uint64(r)
		if errno != 0 {
			calls[i].Ret = uint64(-int64(errno))
		}
	}
	return nil
}

func (s *self) Push(b []byte) (remote.Addr, error) {
	s.pushed = append(s.pushed, b)
	return remote.Addr(uintptr(unsafe.Pointer(unsafe.SliceData(b)))), nil
}

func (s *self) Read(remote.Addr, []byte) error  { return nil }
func (s *self) Write(remote.Addr, []byte) error { return nil }
func (s *self) Reset()                          { s.pushed = nil }
