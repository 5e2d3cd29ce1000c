package procfs

import (
	"bytes"
	"io"
	"strconv"
	"strings"
)

// VMFlag is a set of the kernel's VM_* flags that smaps shows, one bit for each
// of the two-letter codes. The bits are ours, not the kernel's.
type VMFlag uint64

// The codes, in the order of vmFlagCodes (fs/proc/task_mmu.c, show_smap_vma_flags).
const (
	VMRead        VMFlag = 1 << iota // rd
	VMWrite                          // wr
	VMExec                           // ex
	VMShared                         // sh: a shared mapping that may be written
	VMMayRead                        // mr
	VMMayWrite                       // mw
	VMMayExec                        // me
	VMMayShare                       // ms: MAP_SHARED
	VMGrowsDown                      // gd
	VMPFNMap                         // pf
	VMLocked                         // lo
	VMIO                             // io
	VMSeqRead                        // sr
	VMRandRead                       // rr
	VMDontCopy                       // dc: MADV_DONTFORK
	VMDontExpand                     // de
	VMLockOnFault                    // lf
	VMAccount                        // ac
	VMNoReserve                      // nr
	VMHugeTLB                        // ht
	VMSync                           // sf: MAP_SYNC
	VMArch1                          // ar
	VMWipeOnFork                     // wf
	VMDontDump                       // dd
	VMSoftDirty                      // sd
	VMMixedMap                       // mm
	VMHugePage                       // hg
	VMNoHugePage                     // nh
	VMMergeable                      // mg
	VMUffdMissing                    // um
	VMUffdWP                         // uw
	VMUffdMinor                      // ui
	VMShadowStack                    // ss
	VMSealed                         // sl
	VMDroppable                      // dp
)

const vmFlagCodes = "rdwrexshmrmwmemsgdpfloiosrrrdcdelfacnrhtsfarwfddsdmmhgnhmgumuwuisssldp"

// SMap is one mapping and what smaps says of it. Sizes are bytes.
type SMap struct {
	Mapping
	KernelPageSize uint64 // of the mapping's pages: more than 4096 for hugetlb
	MMUPageSize    uint64
	RSS            uint64
	PSS            uint64
	SharedClean    uint64
	SharedDirty    uint64
	PrivateClean   uint64
	PrivateDirty   uint64
	Referenced     uint64
	Anonymous      uint64 // of RSS, what belongs to no file
	KSM            uint64
	LazyFree       uint64
	AnonHugePages  uint64
	Swap           uint64
	Locked         uint64
	ProtectionKey  int // 0 where the CPU has none
	Flags          VMFlag
	OtherFlags     string // codes that are not in the list above, with blanks between
}

// ParseSMaps parses /proc/PID/smaps.
func ParseSMaps(r io.Reader) ([]SMap, error) {
	var out []SMap
	err := EachSMap(r, func(m *SMap) error {
		out = append(out, *m)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// EachSMap parses /proc/PID/smaps and calls f for each mapping; *m is valid until
// f returns. It ends at f's first error and returns it.
func EachSMap(r io.Reader, f func(m *SMap) error) error {
	p := smapParser{flags: map[string]flagSet{}}
	var failed error
	err := eachLine(r, func(line []byte) bool {
		if len(line) == 0 {
			return false
		}
		if line[0] >= 'A' && line[0] <= 'Z' {
			return p.begun && p.attribute(line)
		}
		if p.begun {
			if failed = f(&p.m); failed != nil {
				return false
			}
		}
		p.m, p.begun = SMap{}, true
		return p.m.parse(line, &p.last)
	})
	switch {
	case failed != nil:
		return failed
	case err != nil:
		return err
	case p.begun:
		return f(&p.m)
	}
	return nil
}

// attribute reads a "Key:   12 kB" line. Keys that nobody here needs are skipped
// unread: there are some 25 for each mapping.
func (p *smapParser) attribute(line []byte) bool {
	key, value, ok := bytes.Cut(line, []byte{':'})
	if !ok {
		return false
	}
	if to := p.m.size(key); to != nil {
		return paddedKB(value, to)
	}
	switch string(key) {
	case "VmFlags":
		p.setFlags(value)
	case "ProtectionKey":
		return dec(value, &p.m.ProtectionKey)
	}
	return true
}

// size is where the value of a key goes, or nil.
func (m *SMap) size(key []byte) *uint64 {
	switch string(key) {
	case "KernelPageSize":
		return &m.KernelPageSize
	case "MMUPageSize":
		return &m.MMUPageSize
	case "Rss":
		return &m.RSS
	case "Pss":
		return &m.PSS
	case "Shared_Clean":
		return &m.SharedClean
	case "Shared_Dirty":
		return &m.SharedDirty
	case "Private_Clean":
		return &m.PrivateClean
	case "Private_Dirty":
		return &m.PrivateDirty
	case "Referenced":
		return &m.Referenced
	case "Anonymous":
		return &m.Anonymous
	case "KSM":
		return &m.KSM
	case "LazyFree":
		return &m.LazyFree
	case "AnonHugePages":
		return &m.AnonHugePages
	case "Swap":
		return &m.Swap
	case "Locked":
		return &m.Locked
	}
	return nil
}

// paddedKB is kB for the one form that smaps has: blanks, digits, " kB". It
// reads from the end, because most of the line are blanks.
func paddedKB(b []byte, to *uint64) bool {
	i := len(b) - len(" kB")
	if i < 0 || string(b[i:]) != " kB" {
		return false
	}
	digits := b[:i]
	for i > 0 && b[i-1] != ' ' {
		i--
	}
	n, ok := unsigned(digits[i:], 10)
	*to = n * 1024
	return ok && n < 1<<54
}

// smapParser holds what is known while lines come.
type smapParser struct {
	m     SMap
	begun bool
	last  string // name of the mapping before
	flags map[string]flagSet
}

// flagSet is what one VmFlags line says. A process has thousands of mappings,
// but few different lines.
type flagSet struct {
	known VMFlag
	other string
}

// setFlags takes " rd wr mr mw me ac ".
func (p *smapParser) setFlags(b []byte) {
	set, ok := p.flags[string(b)]
	if !ok {
		set = parseVMFlags(b)
		p.flags[string(b)] = set
	}
	p.m.Flags, p.m.OtherFlags = set.known, set.other
}

func parseVMFlags(b []byte) flagSet {
	var set flagSet
	var other []string
	for word := range bytes.FieldsSeq(b) {
		bit := vmFlag(word)
		if bit == 0 {
			other = append(other, string(word))
		}
		set.known |= bit
	}
	set.other = strings.Join(other, " ")
	return set
}

// vmFlag is the bit of a code, or 0.
func vmFlag(code []byte) VMFlag {
	if len(code) != 2 {
		return 0
	}
	for i := 0; i < len(vmFlagCodes); i += 2 {
		if vmFlagCodes[i] == code[0] && vmFlagCodes[i+1] == code[1] {
			return 1 << (i / 2)
		}
	}
	return 0
}

// String gives the codes back, as smaps has them.
func (f VMFlag) String() string {
	var b []byte
	for i := 0; i < len(vmFlagCodes); i += 2 {
		if f&(1<<(i/2)) != 0 {
			b = append(append(b, vmFlagCodes[i:i+2]...), ' ')
		}
	}
	return string(bytes.TrimSuffix(b, []byte(" ")))
}

// SMaps reads the mappings of a process, ascending, with their sizes and flags.
func (root FS) SMaps(pid int) ([]SMap, error) {
	return read(root, ParseSMaps, strconv.Itoa(pid), "smaps")
}

// ReadSMaps reads /proc/PID/smaps. The kernel walks all page tables for it: some
// milliseconds for each GiB. Unless the process is stopped, the list may mix
// states of different moments.
func ReadSMaps(pid int) ([]SMap, error) { return Proc.SMaps(pid) }
