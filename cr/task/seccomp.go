package task

import (
	"bytes"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/cr/tracer"
)

// Modes of seccomp as the status file gives them.
const (
	SeccompOff    = 0
	SeccompStrict = 1
	SeccompFilter = 2
)

// bpfInsnSize is the size of struct sock_filter.
const bpfInsnSize = 8

// Filters keeps every distinct seccomp filter once.
type Filters struct {
	list []*blob.SeccompFilter
	same map[uint32]uint32 // a new container's filter by the one whose place it takes
}

// NewFilters starts from the filters of an image, or from none.
func NewFilters(s *blob.Seccomp) *Filters {
	return &Filters{list: s.GetFilters(), same: map[uint32]uint32{}}
}

// Record returns the filters for the image.
func (f *Filters) Record() *blob.Seccomp { return &blob.Seccomp{Filters: f.list} }

func (f *Filters) add(program []byte, flags uint32) uint32 {
	for i, have := range f.list {
		if have.Flags == flags && bytes.Equal(have.Program, program) {
			return uint32(i)
		}
	}
	f.list = append(f.list, &blob.SeccompFilter{Program: program, Flags: flags})
	return uint32(len(f.list) - 1)
}

// Of returns the filters of a stopped thread, oldest first: that is the order in
// which PTRACE_SECCOMP_GET_FILTER counts them (kernel/seccomp.c, get_nth_filter).
func (f *Filters) Of(t *tracer.Task) ([]uint32, error) {
	var out []uint32
	for i := 0; ; i++ {
		program, err := t.SeccompFilter(i)
		if errors.Is(err, unix.ENOENT) {
			return out, nil
		}
		if err != nil {
			return nil, fmt.Errorf("seccomp filter %d: %w", i, err)
		}
		flags, err := t.SeccompFlags(i)
		if err != nil {
			return nil, fmt.Errorf("seccomp filter %d: %w", i, err)
		}
		out = append(out, f.add(program, uint32(flags)))
	}
}

// Replace says that the filters fresh, which the runtime made from the profile of
// the new bundle, take the place of old, which it made from the same profile for
// the old container. Bytes can't be compared: libseccomp, and runc's own preamble,
// order the same rules differently from one run to the next.
func (f *Filters) Replace(old, fresh []uint32) error {
	if len(old) != len(fresh) {
		return fmt.Errorf("the runtime made %d filters from the profile that it made %d of before: %w", len(fresh), len(old), errs.ErrHost)
	}
	for i := range old {
		f.same[old[i]] = fresh[i]
	}
	return nil
}

// setSeccompAsks installs what want has beyond the filters have, which the task
// was born with. Those must be the first ones of want: a restored task has
// exactly the filters that it had, not more and not fewer.
func (f *Filters) setSeccompAsks(have []uint32, t *blob.Thread) ([]ask, error) {
	if t.SeccompMode == SeccompStrict {
		return []ask{{what: "prctl PR_SET_SECCOMP strict", nr: unix.SYS_PRCTL, args: [6]uint64{unix.PR_SET_SECCOMP, SeccompStrict}}}, nil
	}
	want := t.SeccompFilters
	if len(have) > len(want) {
		return nil, fmt.Errorf("the new container's seccomp profile has %d filters, the task had %d: %w",
			len(have), len(want), errs.ErrHost)
	}
	for i := range have {
		if now, ok := f.same[want[i]]; have[i] != want[i] && (!ok || now != have[i]) {
			return nil, fmt.Errorf("seccomp filter %d of the new container is not the one the task had: restore with the same profile: %w",
				i, errs.ErrHost)
		}
	}
	var asks []ask
	for _, i := range want[len(have):] {
		asks = append(asks, f.install(i))
	}
	return asks, nil
}

// install lends the call a sock_fprog and, behind it, the program. The pointer
// in sock_fprog is filled in by the run of asks.
func (f *Filters) install(i uint32) ask {
	filter := f.list[i]
	prog := make([]byte, 16, 16+len(filter.Program))
	le.PutUint16(prog, uint16(len(filter.Program)/bpfInsnSize))
	return ask{
		what: "seccomp SECCOMP_SET_MODE_FILTER", nr: unix.SYS_SECCOMP,
		args: [6]uint64{unix.SECCOMP_SET_MODE_FILTER, uint64(filter.Flags)},
		in:   append(prog, filter.Program...), inArg: 2, selfAt: 8, selfTo: 16,
	}
}
