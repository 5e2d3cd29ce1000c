package mem

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/sys"
)

// TaskTarget fills the memory of a stopped task from outside.
//
// There are three ways, tried in this order. Where a userfaultfd watches,
// UFFDIO_COPY makes a page and its contents in one step: nothing is zeroed
// before, and no page becomes part of a huge one. Elsewhere process_vm_writev
// faults pages in as the task would. What the task itself may not write goes
// through /proc/PID/mem.
type TaskTarget struct {
	pid     int
	mem     *os.File
	uffd    *os.File // nil: nothing is watched
	watched []Region // what it fills, ascending
}

// NewTaskTarget opens the memory of pid; the caller closes it. The caller traces
// the task, so that memory which the task itself can't write is written too.
func NewTaskTarget(pid int) (*TaskTarget, error) {
	f, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	return &TaskTarget{pid: pid, mem: f}, nil
}

// Watch registers regions, ascending, with uffd, which belongs to the target
// from now on. What the kernel does not take, and the huge pages, which are there
// already, is filled as if it had not been named. Until Close nobody may touch a
// hole in what is watched.
func (t *TaskTarget) Watch(uffd *os.File, regions []Region, huge []*blob.Huge) {
	t.uffd = uffd
	for _, r := range regions {
		if sys.UFFDRegister(uffd, r.Start, r.End, sys.UFFDMissing) == nil {
			t.watched = append(t.watched, Subtract(r, hugeRegions(huge))...)
		}
	}
}

// Close closes the memory, and ends the watch.
func (t *TaskTarget) Close() error {
	err := t.mem.Close()
	if t.uffd != nil {
		err = errors.Join(err, t.uffd.Close())
	}
	return err
}

func (t *TaskTarget) put(raw []byte, runs []run) error {
	others := runs
	if len(t.watched) > 0 {
		others = nil
		for _, r := range runs {
			if err := t.split(r, func(r run, watched bool) error {
				if !watched {
					others = append(others, r)
					return nil
				}
				return t.copy(raw[r.from:r.to], r.addr)
			}); err != nil {
				return err
			}
		}
	}
	return t.write(raw, others)
}

// split calls f for the parts of r, which are watched or not as a whole.
func (t *TaskTarget) split(r run, f func(r run, watched bool) error) error {
	i, _ := slices.BinarySearchFunc(t.watched, r.addr, func(w Region, at uint64) int {
		if w.End <= at {
			return -1
		}
		return 1
	})
	for r.from < r.to {
		size := uint64(r.to - r.from)
		watched := false
		if i < len(t.watched) {
			w := t.watched[i]
			if watched = w.Start <= r.addr; watched {
				size = min(size, w.End-r.addr)
				i++
			} else {
				size = min(size, w.Start-r.addr)
			}
		}
		if err := f(run{r.addr, r.from, r.from + int(size)}, watched); err != nil {
			return err
		}
		r.addr += size
		r.from += int(size)
	}
	return nil
}

// copy makes pages. One that is there already, because it came from a parent, is
// written like any other.
func (t *TaskTarget) copy(b []byte, at uint64) error {
	for len(b) > 0 {
		n, err := sys.UFFDCopy(t.uffd, at, b, false)
		switch {
		case n > 0: // what stopped it comes up again at the next page
		case errors.Is(err, unix.EEXIST):
			n = PageSize
			err = t.write(b, []run{{at, 0, n}})
			if err != nil {
				return err
			}
		case err != nil:
			return fmt.Errorf("memory %x-%x: userfaultfd: %w", at, at+uint64(len(b)), err)
		}
		b, at = b[n:], at+uint64(n)
	}
	return nil
}

func (t *TaskTarget) write(raw []byte, runs []run) error {
	for len(runs) > 0 {
		n := min(len(runs), maxIov)
		local := make([]unix.Iovec, n)
		remote := make([]unix.RemoteIovec, n)
		size := 0
		for i, r := range runs[:n] {
			local[i] = unix.Iovec{Base: &raw[r.from], Len: uint64(r.to - r.from)}
			remote[i] = unix.RemoteIovec{Base: uintptr(r.addr), Len: r.to - r.from}
			size += r.to - r.from
		}
		if got, err := unix.ProcessVMWritev(t.pid, local, remote, 0); err != nil || got != size {
			if err := t.writeEach(raw, runs[:n]); err != nil {
				return err
			}
		}
		runs = runs[n:]
	}
	return nil
}

// writeEach writes through /proc/PID/mem, which breaks copy-on-write of mappings
// that the task may not write, as a debugger's breakpoint does.
func (t *TaskTarget) writeEach(raw []byte, runs []run) error {
	for _, r := range runs {
		if _, err := t.mem.WriteAt(raw[r.from:r.to], int64(r.addr)); err != nil {
			return fmt.Errorf("memory %x-%x: %w", r.addr, r.addr+uint64(r.to-r.from), err)
		}
	}
	return nil
}

// From how many bytes on watching pays: making a userfaultfd takes some calls in
// the task, each region another one, and each page that it fills is twice as
// cheap.
const (
	watchTask   = 2 << 20
	watchRegion = 128 << 10
)

// Watchable lists those of vmas, which get extents and huge pages, that are worth
// a userfaultfd. There is none if all of them together are not.
func Watchable(vmas []*blob.VMA, extents []*blob.Extent, huge []*blob.Huge) []Region {
	var out []Region
	var all uint64
	for _, v := range vmas {
		if v.Kind != blob.VMA_ANON || v.Flags&uint64(blob.VMAFlag_VMA_HUGETLB) != 0 {
			continue
		}
		var n uint64
		n, extents = bytesWithin(extents, v.Start, v.End)
		for _, h := range hugeIn(huge, v.Start, v.End) {
			n -= min(n, uint64(h.Count)*HugeSize)
		}
		if n >= watchRegion {
			out = append(out, Region{v.Start, v.End})
			all += n
		}
	}
	if all < watchTask {
		return nil
	}
	return out
}

// bytesWithin counts what extents, ascending, have between two addresses, and
// returns those that reach beyond.
func bytesWithin(extents []*blob.Extent, start, end uint64) (n uint64, rest []*blob.Extent) {
	for len(extents) > 0 {
		from, to := bounds(extents[0])
		if from < end && to > start {
			n += min(to, end) - max(from, start)
		}
		if to > end || from >= end {
			break
		}
		extents = extents[1:]
	}
	return n, extents
}

// bounds are the addresses that an extent covers.
func bounds(e *blob.Extent) (start, end uint64) { return e.Start, e.Start + uint64(e.Pages)*PageSize }
