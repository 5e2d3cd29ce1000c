package procfs

import (
	"bytes"
	"io"
	"strconv"
)

// Values of Status.Seccomp (linux/seccomp.h).
const (
	SeccompDisabled = 0
	SeccompStrict   = 1
	SeccompFilter   = 2
)

// Status is /proc/PID/status (fs/proc/array.c, proc_pid_status).
type Status struct {
	Name      string // without the kernel's escapes; any bytes but NUL
	Umask     uint32 // a zombie has none: 0
	State     byte   // R, S, D, T (stopped), t (traced), Z, X, I, ...
	TGID      int
	PID       int
	PPID      int // 0: the parent is outside of the reader's pid namespace
	TracerPID int
	UID       [4]uint32 // real, effective, saved, file system
	GID       [4]uint32
	FDSize    int
	Groups    []uint32

	// The task's numbers, from the reader's pid namespace inwards: the last is
	// that of the task's own. 0: led from outside of that namespace.
	NStgid, NSpid, NSpgid, NSsid []int

	// Sizes in bytes; 0 without memory (zombies, kernel threads).
	VMSize, VMLck, VMPin, VMRSS, RSSAnon, RSSFile, RSSShmem, VMSwap, HugetlbPages uint64

	CoreDumping bool
	THPEnabled  bool // false: PR_SET_THP_DISABLE, or a kernel without huge pages
	Threads     int
	SigQueued   uint64 // signals queued for the user
	SigQMax     uint64 // their limit

	// Bit n-1 is signal n.
	SigPnd, ShdPnd, SigBlk, SigIgn, SigCgt uint64

	CapInh, CapPrm, CapEff, CapBnd, CapAmb uint64

	NoNewPrivs     bool
	Seccomp        int
	SeccompFilters int // how many; -1 if the kernel does not say (before 5.9)

	CPUsAllowedList string
}

// ParseStatus parses /proc/PID/status or /proc/PID/task/TID/status.
func ParseStatus(r io.Reader) (Status, error) {
	s := Status{SeccompFilters: -1}
	fields := append(s.identity(), s.rest()...)
	if err := parseFields(r, fields); err != nil {
		return Status{}, err
	}
	return s, nil
}

// identity is the first half of the file.
func (s *Status) identity() []field {
	return []field{
		{"Name", true, s.setName},
		{"Umask", false, func(b []byte) bool { return oct(b, &s.Umask) }},
		{"State", true, s.setState},
		{"Tgid", true, decTo(&s.TGID)},
		{"Pid", true, decTo(&s.PID)},
		{"PPid", true, decTo(&s.PPID)},
		{"TracerPid", true, decTo(&s.TracerPID)},
		{"Uid", true, func(b []byte) bool { return fill(b, 10, s.UID[:]) }},
		{"Gid", true, func(b []byte) bool { return fill(b, 10, s.GID[:]) }},
		{"FDSize", true, decTo(&s.FDSize)},
		{"Groups", true, func(b []byte) bool { return decs(b, &s.Groups) }},
		{"NStgid", true, nsTo(&s.NStgid)},
		{"NSpid", true, nsTo(&s.NSpid)},
		{"NSpgid", true, nsTo(&s.NSpgid)},
		{"NSsid", true, nsTo(&s.NSsid)},
		{"VmSize", false, kBTo(&s.VMSize)},
		{"VmLck", false, kBTo(&s.VMLck)},
		{"VmPin", false, kBTo(&s.VMPin)},
		{"VmRSS", false, kBTo(&s.VMRSS)},
		{"RssAnon", false, kBTo(&s.RSSAnon)},
		{"RssFile", false, kBTo(&s.RSSFile)},
		{"RssShmem", false, kBTo(&s.RSSShmem)},
		{"VmSwap", false, kBTo(&s.VMSwap)},
		{"HugetlbPages", false, kBTo(&s.HugetlbPages)},
	}
}

// rest is the second half.
func (s *Status) rest() []field {
	return []field{
		{"CoreDumping", false, boolTo(&s.CoreDumping)},
		{"THP_enabled", false, boolTo(&s.THPEnabled)},
		{"Threads", true, decTo(&s.Threads)},
		{"SigQ", true, s.setSigQ},
		{"SigPnd", true, maskTo(&s.SigPnd)},
		{"ShdPnd", true, maskTo(&s.ShdPnd)},
		{"SigBlk", true, maskTo(&s.SigBlk)},
		{"SigIgn", true, maskTo(&s.SigIgn)},
		{"SigCgt", true, maskTo(&s.SigCgt)},
		{"CapInh", true, maskTo(&s.CapInh)},
		{"CapPrm", true, maskTo(&s.CapPrm)},
		{"CapEff", true, maskTo(&s.CapEff)},
		{"CapBnd", true, maskTo(&s.CapBnd)},
		{"CapAmb", true, maskTo(&s.CapAmb)},
		{"NoNewPrivs", true, boolTo(&s.NoNewPrivs)},
		{"Seccomp", false, decTo(&s.Seccomp)},
		{"Seccomp_filters", false, decTo(&s.SeccompFilters)},
		{"Cpus_allowed_list", false, s.setCPUs},
	}
}

func (s *Status) setName(b []byte) bool {
	if len(b) == 0 || b[0] != '\t' {
		return false
	}
	s.Name = unescapeName(b[1:])
	return true
}

// unescapeName undoes what the kernel does to names in status: a newline is
// written \n and a backslash \\; nothing else is changed.
func unescapeName(b []byte) string {
	if bytes.IndexByte(b, '\\') < 0 {
		return string(b)
	}
	out := make([]byte, 0, len(b))
	for i := 0; i < len(b); i++ {
		if b[i] == '\\' && i+1 < len(b) && (b[i+1] == 'n' || b[i+1] == '\\') {
			i++
			if b[i] == 'n' {
				out = append(out, '\n')
				continue
			}
		}
		out = append(out, b[i])
	}
	return string(out)
}

// setState takes the letter of "S (sleeping)".
func (s *Status) setState(b []byte) bool {
	word, _ := cutWord(b)
	if len(word) != 1 {
		return false
	}
	s.State = word[0]
	return true
}

// setSigQ takes "queued/limit".
func (s *Status) setSigQ(b []byte) bool {
	have, most, ok := bytes.Cut(b, []byte("/"))
	return ok && dec(have, &s.SigQueued) && dec(most, &s.SigQMax)
}

func (s *Status) setCPUs(b []byte) bool {
	s.CPUsAllowedList = string(bytes.TrimSpace(b))
	return true
}

func decTo(to *int) func([]byte) bool { return func(b []byte) bool { return dec(b, to) } }

func maskTo(to *uint64) func([]byte) bool { return func(b []byte) bool { return hex(b, to) } }

// nsTo takes a number for each pid namespace: at least the reader's.
func nsTo(to *[]int) func([]byte) bool {
	return func(b []byte) bool { return decs(b, to) && len(*to) > 0 }
}

func boolTo(to *bool) func([]byte) bool {
	return func(b []byte) bool {
		var n uint64
		ok := dec(b, &n) && n <= 1
		*to = n == 1
		return ok
	}
}

// kBTo takes "  12 kB" as bytes.
func kBTo(to *uint64) func([]byte) bool {
	return func(b []byte) bool { return kB(b, to) }
}

func kB(b []byte, to *uint64) bool {
	n, unit := cutWord(b)
	const most = 1<<54 - 1 // whose 1024-fold fits
	if !dec(n, to) || *to > most || string(bytes.TrimSpace(unit)) != "kB" {
		return false
	}
	*to *= 1024
	return true
}

// Status reads a process's status.
func (root FS) Status(pid int) (Status, error) {
	return read(root, ParseStatus, strconv.Itoa(pid), "status")
}

// TaskStatus reads a thread's status.
func (root FS) TaskStatus(pid, tid int) (Status, error) {
	return read(root, ParseStatus, strconv.Itoa(pid), "task", strconv.Itoa(tid), "status")
}

// ReadStatus reads /proc/PID/status.
func ReadStatus(pid int) (Status, error) { return Proc.Status(pid) }

// ReadTaskStatus reads /proc/PID/task/TID/status.
func ReadTaskStatus(pid, tid int) (Status, error) { return Proc.TaskStatus(pid, tid) }
