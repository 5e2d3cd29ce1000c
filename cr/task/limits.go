package task

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/procfs"
	"github.com/stasis-cr/stasis/cr/remote"
)

// limitsOf reads a process's limits. The file is read, not prlimit(2): that
// needs CAP_SYS_RESOURCE for another user's process.
func limitsOf(pid int) ([]*blob.RLimit, error) {
	list, err := procfs.ReadLimits(pid)
	if err != nil {
		return nil, err
	}
	out := make([]*blob.RLimit, 0, len(list))
	for _, l := range list {
		out = append(out, &blob.RLimit{Resource: uint32(l.Resource), Soft: l.Soft, Hard: l.Hard})
	}
	return out, nil
}

// setLimits gives a process its limits. The task sets them itself where the kernel
// lets it: to set them for another user's process needs CAP_SYS_RESOURCE, even
// only to lower them. What the task may not raise is raised from outside.
func setLimits(ctx context.Context, pid int, c remote.Caller, want []*blob.RLimit) error {
	have, err := limitsOf(pid)
	if err != nil {
		return err
	}
	is := map[uint32]*blob.RLimit{}
	for _, l := range have {
		is[l.Resource] = l
	}
	for _, w := range want {
		if h := is[w.Resource]; h != nil && h.Soft == w.Soft && h.Hard == w.Hard {
			continue
		}
		if err := setLimit(ctx, pid, c, w); err != nil {
			return fmt.Errorf("limit %d to %d:%d: %w", w.Resource, w.Soft, w.Hard, err)
		}
	}
	return nil
}

func setLimit(ctx context.Context, pid int, c remote.Caller, w *blob.RLimit) error {
	err := run(ctx, c, []ask{{
		what: "prlimit64", nr: unix.SYS_PRLIMIT64, args: [6]uint64{0, uint64(w.Resource)},
		in: u64s(w.Soft, w.Hard), inArg: 2,
	}})
	if errors.Is(err, unix.EPERM) {
		return unix.Prlimit(pid, int(w.Resource), &unix.Rlimit{Cur: w.Soft, Max: w.Hard}, nil)
	}
	return err
}

func readInt(path string) (int64, error) {
	b, err := procfs.ReadFile(path)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	return n, nil
}
