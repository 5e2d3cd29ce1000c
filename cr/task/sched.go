package task

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/sys"
)

// schedOf reads a thread's scheduling from outside. tid is a host thread id.
func schedOf(tid int) (*blob.Sched, error) {
	a, err := unix.SchedGetAttr(tid, 0)
	if err != nil {
		return nil, fmt.Errorf("sched_getattr: %w", err)
	}
	var cpus unix.CPUSet
	if err := unix.SchedGetaffinity(tid, &cpus); err != nil {
		return nil, fmt.Errorf("sched_getaffinity: %w", err)
	}
	ioprio, err := sys.IOPrioGet(tid)
	if err != nil {
		return nil, err
	}
	s := &blob.Sched{
		Policy: a.Policy, Flags: a.Flags, Nice: a.Nice, Priority: a.Priority,
		Runtime: a.Runtime, Deadline: a.Deadline, Period: a.Period,
		IoPrio: ioprio,
	}
	s.Affinity = make([]byte, len(cpus)*8)
	for cpu := range 8 * len(s.Affinity) {
		if cpus.IsSet(cpu) {
			s.Affinity[cpu/8] |= 1 << (cpu % 8)
		}
	}
	return s, nil
}

// setSched gives a thread its scheduling, from outside. have is what it has.
// CPUs that this host lacks are left out, and an affinity that would be empty is
// not set.
func setSched(tid int, have, want *blob.Sched) error {
	if string(have.Affinity) != string(want.Affinity) {
		if err := setAffinity(tid, want.Affinity); err != nil {
			return err
		}
	}
	if have.Policy != want.Policy || have.Nice != want.Nice || have.Priority != want.Priority || have.Flags != want.Flags {
		err := unix.SchedSetAttr(tid, &unix.SchedAttr{
			Size: unix.SizeofSchedAttr, Policy: want.Policy, Flags: want.Flags, Nice: want.Nice, Priority: want.Priority,
			Runtime: want.Runtime, Deadline: want.Deadline, Period: want.Period,
		}, 0)
		if err != nil {
			return fmt.Errorf("sched_setattr policy %d nice %d: %w", want.Policy, want.Nice, err)
		}
	}
	if have.IoPrio != want.IoPrio {
		return sys.IOPrioSet(tid, want.IoPrio)
	}
	return nil
}

func setAffinity(tid int, mask []byte) error {
	var online, cpus unix.CPUSet
	if err := unix.SchedGetaffinity(os.Getpid(), &online); err != nil {
		return fmt.Errorf("sched_getaffinity: %w", err)
	}
	for cpu := range 8 * len(mask) {
		if mask[cpu/8]&(1<<(cpu%8)) != 0 && online.IsSet(cpu) {
			cpus.Set(cpu)
		}
	}
	if cpus.Count() == 0 {
		return nil
	}
	if err := unix.SchedSetaffinity(tid, &cpus); err != nil {
		return fmt.Errorf("sched_setaffinity: %w", err)
	}
	return nil
}

// setOOMScore writes a process's oom_score_adj from outside. Only a change is
// written: lowering it needs CAP_SYS_RESOURCE even to stay the same.
func setOOMScore(pid int, want int32) error {
	path := fmt.Sprintf("/proc/%d/oom_score_adj", pid)
	have, err := readInt(path)
	if err != nil || int32(have) == want {
		return err
	}
	return os.WriteFile(path, strconv.AppendInt(nil, int64(want), 10), 0)
}
