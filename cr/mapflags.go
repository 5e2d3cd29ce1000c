package cr

import (
	"maps"
	"runtime"
	"slices"

	"github.com/stasis-cr/stasis/cr/procfs"
)

// mapFlags finds the flags of mappings (advice, locks) without letting the
// container wait for them.
//
// Only smaps tells the flags, and it counts every page on the way: 30 ms for a
// GiB. So for a process whose memory is large, those of the look before the
// freeze are taken, and compared afterwards with those of another look: a flag
// that was the same before and after was so in between. Where they differ,
// nobody knows what it was at the freeze, and the container must be frozen once
// more.
type mapFlags struct {
	before map[int][]procfs.SMap // of the last look, by host pid
	exact  bool                  // the container may wait
	taken  map[int][]procfs.SMap // what was taken of that, by host pid
}

// ours are the flags that the following of memory sets for a while. (A program's
// own userfaultfd is refused as a file.)
const ours = procfs.VMUffdWP

// smapsQuick is how many bytes of memory smaps counts in no time.
const smapsQuick = 2 << 20

// mappings lists the mappings of a stopped process.
func (f *mapFlags) mappings(pid int) ([]procfs.SMap, error) {
	if !f.exact && resident(f.before[pid]) > smapsQuick {
		now, err := procfs.ReadMaps(pid)
		if err != nil {
			return nil, err
		}
		if known, ok := withFlags(now, f.before[pid]); ok {
			f.taken[pid] = known
			return known, nil
		}
	}
	all, err := procfs.ReadSMaps(pid)
	for i := range all {
		all[i].Flags &^= ours
	}
	return all, err
}

// readMaps reads the mappings of a process of the host.
type readMaps func(pid int) ([]procfs.SMap, error)

// readAhead reads the mappings of processes, of one for each CPU at a time, and
// returns what waits for those of one. Each can be asked for once; what nobody asks for
// is read for nothing.
func readAhead(pids []int) readMaps {
	type answer struct {
		maps []procfs.SMap
		err  error
	}
	answers := map[int]chan answer{}
	for _, pid := range pids {
		answers[pid] = make(chan answer, 1)
	}
	places := make(chan struct{}, runtime.NumCPU())
	go func() {
		for _, pid := range pids {
			places <- struct{}{}
			go func() {
				maps, err := procfs.ReadSMaps(pid)
				answers[pid] <- answer{maps, err}
				<-places
			}()
		}
	}()
	return func(pid int) ([]procfs.SMap, error) {
		if answers[pid] == nil {
			return procfs.ReadSMaps(pid)
		}
		a := <-answers[pid]
		return a.maps, a.err
	}
}

func resident(maps []procfs.SMap) (bytes uint64) {
	for i := range maps {
		bytes += maps[i].RSS
	}
	return bytes
}

// withFlags gives each mapping the flags of those that were in its place before.
// It fails where there were none, or some that differed.
func withFlags(maps []procfs.Mapping, before []procfs.SMap) ([]procfs.SMap, bool) {
	out := make([]procfs.SMap, 0, len(maps))
	for _, m := range maps {
		was := inPlace(m, before)
		if len(was) == 0 || slices.ContainsFunc(was, func(w procfs.SMap) bool { return w.Flags != was[0].Flags || w.OtherFlags != was[0].OtherFlags }) {
			return nil, false
		}
		out = append(out, procfs.SMap{Mapping: m, Flags: was[0].Flags &^ ours, OtherFlags: was[0].OtherFlags})
	}
	return out, true
}

// inPlace returns the mappings of list that overlap m and are of the same kind.
func inPlace(m procfs.Mapping, list []procfs.SMap) []procfs.SMap {
	i, _ := slices.BinarySearchFunc(list, m.Start, func(o procfs.SMap, at uint64) int {
		if o.End <= at {
			return -1
		}
		return 1
	})
	j := i
	for j < len(list) && list[j].Start < m.End {
		o := list[j].Mapping
		if o.Prot != m.Prot || o.Shared != m.Shared || o.Inode != m.Inode || o.Major != m.Major || o.Minor != m.Minor {
			return nil
		}
		j++
	}
	return list[i:j]
}

// confirmed says whether all flags that were taken are still what they were. The
// container runs by now: what has gone or changed its kind since says nothing.
func (f *mapFlags) confirmed() bool {
	read := readAhead(slices.Collect(maps.Keys(f.taken)))
	for pid, taken := range f.taken {
		now, err := read(pid)
		if err != nil {
			continue // ended
		}
		for _, m := range taken {
			if slices.ContainsFunc(inPlace(m.Mapping, now), func(n procfs.SMap) bool { return n.Flags&^ours != m.Flags }) {
				return false
			}
		}
	}
	return true
}
