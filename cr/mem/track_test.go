package mem

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/procfs"
	"github.com/stasis-cr/stasis/cr/sys"
)

// writerEnv makes the test binary a process that writes its memory all the time.
const writerEnv = "STASIS_MEM_WRITER"

// writer is what such a process says of itself.
type writer struct {
	UFFD  int // a userfaultfd of its memory
	Areas []place
}

// Sizes of the writer's areas.
const (
	writerAreas = 3
	writerPages = 4 * chunkPages
)

// areaIn makes an area of its own mapping: one page of addresses between two
// keeps the kernel from joining them.
func areaIn() ([]byte, error) {
	b, err := unix.Mmap(-1, 0, (writerPages+1)*PageSize, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, err
	}
	b = b[:writerPages*PageSize]
	return b, unix.Mprotect(b, unix.PROT_READ|unix.PROT_WRITE)
}

func writeForever() error {
	fd, _, e := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK|sys.UFFDUserModeOnly, 0, 0)
	if e != 0 {
		return fmt.Errorf("userfaultfd: %w", e)
	}
	w := writer{UFFD: int(fd)}
	var areas [][]byte
	for i := range writerAreas {
		b, err := areaIn()
		if err != nil {
			return err
		}
		if i == 0 {
			err = unix.Madvise(b, unix.MADV_HUGEPAGE)
		} else {
			err = unix.Madvise(b, unix.MADV_NOHUGEPAGE)
		}
		if err != nil {
			return err
		}
		copy(b[:len(b)/2], noise(uint64(i), len(b)/2))
		at := uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b))))
		w.Areas = append(w.Areas, place{at, at + uint64(len(b)), false})
		areas = append(areas, b)
	}
	if err := json.NewEncoder(os.Stdout).Encode(w); err != nil {
		return err
	}
	failed := make(chan error)
	for i, b := range areas {
		go func() { failed <- scribble(uint64(i), b) }()
	}
	return <-failed
}

// scribble writes to b in every way that the kernel treats in one of its own.
func scribble(seed uint64, b []byte) error {
	r := rand.New(rand.NewPCG(seed, 1))
	in, out, err := os.Pipe()
	if err != nil {
		return err
	}
	for {
		p := r.IntN(writerPages)
		page := b[p*PageSize : (p+1)*PageSize]
		few := b[p*PageSize : min(p+9, writerPages)*PageSize]
		var err error
		switch r.IntN(200) {
		case 0:
			err = unix.Madvise(few, unix.MADV_DONTNEED)
		case 1: // mapped anew
			_, err = unix.MmapPtr(-1, 0, unsafe.Pointer(&few[0]), uintptr(len(few)), unix.PROT_READ|unix.PROT_WRITE,
				unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_FIXED)
		case 2: // read(2) into the page
			if _, err = out.Write(noise(r.Uint64(), 512)); err == nil {
				_, err = in.Read(page[:512])
			}
		case 3: // pages moved here from elsewhere
			err = moveIn(few, r)
		case 4:
			clear(page)
		default:
			page[r.IntN(PageSize)] = byte(r.Uint32())
		}
		if err != nil {
			return err
		}
	}
}

func moveIn(to []byte, r *rand.Rand) error {
	b, err := unix.Mmap(-1, 0, len(to), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	copy(b, noise(r.Uint64(), PageSize))
	_, err = unix.MremapPtr(unsafe.Pointer(&b[0]), uintptr(len(b)), unsafe.Pointer(&to[0]), uintptr(len(to)),
		unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED)
	return err
}

// startWriter starts a writer and takes its userfaultfd.
func startWriter(t *testing.T) (*exec.Cmd, *writer, *os.File) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), self)
	cmd.Env = append(os.Environ(), writerEnv+"=1")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() //nolint:errcheck // ours
		_ = cmd.Wait()         //nolint:errcheck // killed
	})
	w := &writer{}
	if err := json.NewDecoder(out).Decode(w); err != nil {
		t.Fatalf("writer: %v", err)
	}
	pidfd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	fd, err := unix.PidfdGetfd(pidfd, w.UFFD, 0)
	if err != nil {
		t.Fatal(err)
	}
	return cmd, w, os.NewFile(uintptr(fd), "userfaultfd")
}

func needsTracking(t *testing.T, err error) {
	t.Helper()
	needs(t, "UFFD_FEATURE_WP_ASYNC", !errors.Is(err, unix.EINVAL))
	if err != nil {
		t.Fatal(err)
	}
}

// stopped stops a process and waits until every thread of it is.
func stopped(t *testing.T, pid int) {
	t.Helper()
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		if err != nil {
			t.Fatal(err)
		}
		all := true
		for _, e := range tasks {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/stat", pid, e.Name()))
			all = all && (err != nil || bytes.Contains(b, []byte(") T ")))
		}
		if all {
			return
		}
	}
	t.Fatal("the writer did not stop")
}

// anonymous lists the private mappings of a process within its areas.
func anonymous(t *testing.T, pid int, w *writer) *blob.MM {
	t.Helper()
	maps, err := procfs.ReadMaps(pid)
	if err != nil {
		t.Fatal(err)
	}
	mm := &blob.MM{}
	for _, m := range maps {
		for _, a := range w.Areas {
			if m.Start < a.End && a.Start < m.End {
				mm.Vmas = append(mm.Vmas, &blob.VMA{Start: max(m.Start, a.Start), End: min(m.End, a.End)})
			}
		}
	}
	return mm
}

// TestTracker saves a process while it writes, and the rest when it stands still:
// what is saved is the memory at that moment.
func TestTracker(t *testing.T) {
	needsPagemapScan(t)
	for round := range 8 {
		cmd, w, uffd := startWriter(t)
		pid := cmd.Process.Pid
		tracker, err := NewTracker(pid, uffd)
		needsTracking(t, err)
		defer tracker.Close()
		for _, a := range w.Areas {
			if err := tracker.Watch(a.Start, a.End); err != nil {
				t.Fatal(err)
			}
		}
		f := tempFile(t)
		store := NewStore(f, StoreOptions{})
		for pass := range 1 + round%4 {
			s := NewSaver(t.Context(), store, SaverOptions{Background: true})
			if pass == 0 && round%3 == 0 {
				err = tracker.Protect()
				_, e := tracker.First(s, round%2 == 1, func(int64) error { return nil })
				err = errors.Join(err, e)
			} else {
				_, err = tracker.Pass(s, round%2 == 1)
			}
			if err := errors.Join(err, s.Wait()); err != nil {
				t.Fatal(err)
			}
			tracker.Passed()
		}
		before := store.Size()
		stopped(t, pid)
		mm := anonymous(t, pid, w)
		s := NewSaver(t.Context(), store, SaverOptions{})
		err = s.AddressSpace(pid, mm, round%2 == 1, tracker)
		if err := errors.Join(err, s.Wait()); err != nil {
			t.Fatal(err)
		}
		sameAs(t, fmt.Sprintf("round %d", round), pid, w, &saved{f, store.Index("pages")}, mm)
		if kept := store.Size() - before; kept == 0 {
			t.Errorf("round %d: nothing was copied at the stop: does the writer write?", round)
		}
	}
}

// TestTrackerGoesOn saves a process again and again, with one tracker that goes on
// from each save to the next. Every other save is given up.
func TestTrackerGoesOn(t *testing.T) {
	needsPagemapScan(t)
	cmd, w, uffd := startWriter(t)
	pid := cmd.Process.Pid
	tracker, err := NewTracker(pid, uffd)
	needsTracking(t, err)
	for _, a := range w.Areas {
		ok(t, tracker.Watch(a.Start, a.End))
	}
	tracker.GoOn()
	defer tracker.Close()
	f := tempFile(t)
	store := NewStore(f, StoreOptions{})
	for round := range 10 {
		stopped(t, pid)
		mm := anonymous(t, pid, w)
		s := NewSaver(t.Context(), store, SaverOptions{})
		err := s.AddressSpace(pid, mm, false, tracker)
		ok(t, errors.Join(err, s.Wait()))
		sameAs(t, fmt.Sprintf("round %d", round), pid, w, &saved{f, store.Index("pages")}, mm)
		if round%2 == 1 {
			tracker.Discarded()
		} else {
			tracker.setBase(mm.Extents) // as AdoptTracker has it
			tracker.full = true
		}
		ok(t, unix.Kill(pid, unix.SIGCONT))
		for n := int64(0); n < 16*PageSize; { // it writes
			n, err = tracker.Written()
			ok(t, err)
		}
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// sameAs compares what is saved with the memory of a process that stands still.
func sameAs(t *testing.T, when string, pid int, w *writer, s *saved, mm *blob.MM) {
	t.Helper()
	pages := s.pages(t, mm.Extents)
	for i, a := range w.Areas {
		is := peek(t, pid, a)
		for at := a.Start; at < a.End; at += PageSize {
			want := is[at-a.Start : at-a.Start+PageSize]
			got, ok := pages[at]
			if !ok {
				got = zeroPage[:]
			}
			if !bytes.Equal(got, want) {
				t.Fatalf("%s: area %d: page %d is not what it was at the stop", when, i, (at-a.Start)/PageSize)
			}
		}
	}
}

// TestTrackerSaves: what is not written any more is not copied again.
func TestTrackerSaves(t *testing.T) {
	needsPagemapScan(t)
	cmd, w, uffd := startWriter(t)
	stopped(t, cmd.Process.Pid)
	tracker, err := NewTracker(cmd.Process.Pid, uffd)
	needsTracking(t, err)
	defer tracker.Close()
	for _, a := range w.Areas {
		if err := tracker.Watch(a.Start, a.End); err != nil {
			t.Fatal(err)
		}
	}
	store := NewStore(tempFile(t), StoreOptions{})
	mm := anonymous(t, cmd.Process.Pid, w)
	for pass := range 2 {
		s := NewSaver(t.Context(), store, SaverOptions{})
		n, err := tracker.Pass(s, false)
		if err := errors.Join(err, s.Wait()); err != nil {
			t.Fatal(err)
		}
		tracker.Passed()
		if (pass == 0) != (n > 0) {
			t.Errorf("pass %d: %d bytes", pass, n)
		}
	}
	size := store.Size()
	s := NewSaver(t.Context(), store, SaverOptions{})
	err = s.AddressSpace(cmd.Process.Pid, mm, false, tracker)
	if err := errors.Join(err, s.Wait()); err != nil {
		t.Fatal(err)
	}
	if store.Size() != size || len(mm.Extents) == 0 {
		t.Errorf("%d bytes were copied again, %d extents", store.Size()-size, len(mm.Extents))
	}
}
