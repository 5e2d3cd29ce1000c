package procfs

import (
	"bytes"
	"fmt"
	"io"
	"strconv"
)

// FDInfo is /proc/PID/fdinfo/FD: what every descriptor has (fs/proc/fd.c,
// seq_show), and what its kind adds. A part of another kind is nil.
type FDInfo struct {
	Pos   int64
	Flags uint32 // O_*, with O_CLOEXEC if the descriptor is closed on exec
	MntID int
	Ino   uint64 // Linux 5.14 and later, else 0

	EventFD  *EventFD
	SignalFD *SignalFD
	TimerFD  *TimerFD
	EPoll    []EPollTarget
	Inotify  []InotifyWatch
	Fanotify *Fanotify
	PidFD    *PidFD
	IOURing  *IOURing
	Locks    []Lock

	SCMFDs   uint32 // descriptors that wait in a unix socket's queue
	TTYIndex int    // a pty master's number N of /dev/pts/N; else -1

	// Extra are the lines that belong to none of these: a kind of object that
	// this package does not know.
	Extra []string
}

// oCloexec is O_CLOEXEC, on x86 and most others.
const oCloexec = 0o2000000

// CloseOnExec tells whether the descriptor, not the file, has FD_CLOEXEC.
func (f *FDInfo) CloseOnExec() bool { return f.Flags&oCloexec != 0 }

// EventFD is the count of an eventfd (fs/eventfd.c).
type EventFD struct {
	Count     uint64
	ID        int // -1 if the kernel does not say
	Semaphore int // 1: EFD_SEMAPHORE; -1: the kernel does not say (before 6.5)
}

// SignalFD is the signal set of a signalfd: bit n-1 is signal n.
type SignalFD struct{ Mask uint64 }

// TimerFD is a timerfd's state (fs/timerfd.c).
type TimerFD struct {
	Clock        int
	Ticks        uint64 // expiries that nobody has read
	SettimeFlags uint32 // TFD_TIMER_ABSTIME, TFD_TIMER_CANCEL_ON_SET
	ValueNS      int64  // time left, nanoseconds; 0: not armed
	IntervalNS   int64
}

// EPollTarget is one descriptor that an epoll watches (fs/eventpoll.c). It may
// have been closed since and its number given to another file: Ino and Dev tell.
type EPollTarget struct {
	FD     int
	Events uint32 // EPOLL*, those of its mode included
	Data   uint64
	Pos    int64
	Ino    uint64
	Dev    uint32 // the kernel's dev_t: major<<20 | minor
}

// InotifyWatch is one watch of an inotify (fs/notify/fdinfo.c).
type InotifyWatch struct {
	WD      int
	Ino     uint64
	Dev     uint32 // the kernel's dev_t: major<<20 | minor
	Mask    uint32
	Ignored uint32
	Handle  *Handle // nil if the file system gives none
}

// Handle is a file's handle, as name_to_handle_at(2) gives it.
type Handle struct {
	Type int
	Data []byte
}

// Fanotify is a fanotify group. Its marks are kept as they stand.
type Fanotify struct {
	Flags      uint32
	EventFlags uint32
	Marks      []string
}

// PidFD says which process a pidfd is for (kernel/pid.c).
type PidFD struct {
	PID   int   // -1: it was waited for; 0: not in the reader's pid namespace
	NSpid []int // in each namespace from the reader's inwards
}

// IOURing is an io_uring (io_uring/fdinfo.c); Lines has all it says.
type IOURing struct {
	Lines []string
}

// Lock is a file lock that was taken through the descriptor's file (fs/locks.c).
// A POSIX lock is shown with every descriptor its owner has on the file.
type Lock struct {
	Kind  string // FLOCK, POSIX, OFDLCK, LEASE, DELEG
	State string // ADVISORY, MANDATORY; of a lease ACTIVE, BREAKING, BREAKER
	Type  string // READ, WRITE, UNLCK
	PID   int    // who took it, in the reader's pid namespace; -1 for OFDLCK
	Major uint32
	Minor uint32
	Ino   uint64
	Start uint64
	End   uint64 // last byte, inclusive; LockToEnd: to the end of the file
}

// LockToEnd is the Lock.End of a lock that grows with its file.
const LockToEnd = 1<<63 - 1

// ParseFDInfo parses /proc/PID/fdinfo/FD.
func ParseFDInfo(r io.Reader) (FDInfo, error) {
	p := fdParser{FDInfo: FDInfo{TTYIndex: -1}}
	if err := eachLine(r, p.line); err != nil {
		return FDInfo{}, err
	}
	const all = seenPos | seenFlags | seenMnt
	if p.seen&all != all {
		return FDInfo{}, fmt.Errorf("no pos, flags or mnt_id: %w", ErrFormat)
	}
	if p.PidFD != nil && p.PidFD.NSpid == nil && p.PidFD.PID != 0 {
		return FDInfo{}, fmt.Errorf("pidfd without NSpid: %w", ErrFormat)
	}
	return p.FDInfo, nil
}

const (
	seenPos = 1 << iota
	seenFlags
	seenMnt
	seenIno
)

// fdParser holds what is known while lines come.
type fdParser struct {
	FDInfo
	seen int
}

func (p *fdParser) line(line []byte) bool {
	if p.IOURing != nil { // the last thing in the file, in a form of its own
		p.IOURing.Lines = append(p.IOURing.Lines, string(line))
		return true
	}
	key, v, ok := bytes.Cut(line, []byte(":"))
	if !ok {
		key, v = line, nil
	}
	switch string(key) {
	case "pos":
		return p.once(seenPos) && dec(v, &p.Pos)
	case "flags":
		return p.once(seenFlags) && oct(v, &p.Flags)
	case "mnt_id":
		return p.once(seenMnt) && dec(v, &p.MntID)
	case "ino":
		return p.once(seenIno) && dec(v, &p.Ino)
	case "lock":
		return p.lock(v)
	case "scm_fds":
		return dec(v, &p.SCMFDs)
	case "tty-index":
		return dec(v, &p.TTYIndex)
	}
	return p.object(line, string(key), v)
}

func (p *fdParser) once(bit int) bool {
	first := p.seen&bit == 0
	p.seen |= bit
	return first
}

// object reads the lines of one kind of object. Their order is the kernel's: the
// first one tells the kind.
func (p *fdParser) object(line []byte, key string, v []byte) bool {
	switch key {
	case "eventfd-count":
		p.EventFD = &EventFD{ID: -1, Semaphore: -1}
		return hex(v, &p.EventFD.Count)
	case "eventfd-id":
		return p.EventFD != nil && dec(v, &p.EventFD.ID)
	case "eventfd-semaphore":
		return p.EventFD != nil && dec(v, &p.EventFD.Semaphore)
	case "sigmask":
		p.SignalFD = &SignalFD{}
		return hex(v, &p.SignalFD.Mask)
	case "clockid", "ticks", "settime flags", "it_value", "it_interval":
		return p.timer(key, v)
	case "tfd":
		return p.target(line)
	case "Pid":
		p.PidFD = &PidFD{}
		return dec(v, &p.PidFD.PID)
	case "NSpid":
		return p.PidFD != nil && decs(v, &p.PidFD.NSpid)
	case "SqMask":
		p.IOURing = &IOURing{Lines: []string{string(line)}}
		return true
	}
	switch {
	case bytes.HasPrefix(line, []byte("inotify ")):
		return p.watch(line)
	case bytes.HasPrefix(line, []byte("fanotify ")):
		return p.fanotify(line)
	}
	p.Extra = append(p.Extra, string(line))
	return true
}

// FDInfo reads what the kernel tells of one descriptor.
func (root FS) FDInfo(pid, fd int) (FDInfo, error) {
	return read(root, ParseFDInfo, strconv.Itoa(pid), "fdinfo", strconv.Itoa(fd))
}

// ReadFDInfo reads /proc/PID/fdinfo/FD.
func ReadFDInfo(pid, fd int) (FDInfo, error) { return Proc.FDInfo(pid, fd) }
