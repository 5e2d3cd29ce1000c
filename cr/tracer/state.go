package tracer

import (
	"encoding/binary"

	"github.com/stasis-cr/stasis/cr/sys"
	"golang.org/x/sys/unix"
)

// Notes of [Task.Regset] (include/uapi/linux/elf.h).
const (
	NTPrStatus  = 1     // general registers
	NTPrFPReg   = 2     // legacy floating point registers
	NTX86XState = 0x202 // everything XSAVE saves, in its standard format
)

// Regs reads the general registers.
func (t *Task) Regs() (r unix.PtraceRegs, err error) {
	return r, t.wrap("read registers of", unix.PtraceGetRegs(t.TID, &r))
}

// SetRegs sets all general registers at once.
func (t *Task) SetRegs(r *unix.PtraceRegs) error {
	return t.wrap("set registers of", unix.PtraceSetRegs(t.TID, r))
}

// The kernel cuts a register set to the buffer without a word, so the buffer
// grows until something is left. AMX makes the extended state 11 KiB.
const (
	regsetFirst = 4096
	regsetMost  = 1 << 20
)

// Regset reads a register set named by its note.
func (t *Task) Regset(note int) ([]byte, error) {
	for size := regsetFirst; ; size *= 2 {
		b := make([]byte, size)
		n, err := sys.PtraceRegset(sys.PtraceGetRegset, t.TID, note, b)
		if err != nil {
			return nil, t.wrap("read register set of", err)
		}
		if n < size || size >= regsetMost {
			return b[:n:n], nil
		}
	}
}

// SetRegset sets a register set; b has the layout that [Task.Regset] returned.
func (t *Task) SetRegset(note int, b []byte) error {
	_, err := sys.PtraceRegset(sys.PtraceSetRegset, t.TID, note, b)
	return t.wrap("set register set of", err)
}

// SigMask is the set of blocked signals, signal n being bit n-1. In a call with
// a mask of its own (sigsuspend, ppoll, epoll_pwait) it is the one to come back
// when the call is over.
func (t *Task) SigMask() (uint64, error) {
	var b [8]byte
	_, err := sys.PtraceBytes(sys.PtraceGetSigMask, t.TID, uintptr(len(b)), b[:])
	return binary.NativeEndian.Uint64(b[:]), t.wrap("read signal mask of", err)
}

// SetSigMask sets the blocked signals and forgets a call's own mask: the call,
// restarted, sets it again.
func (t *Task) SetSigMask(mask uint64) error {
	var b [8]byte
	binary.NativeEndian.PutUint64(b[:], mask)
	_, err := sys.PtraceBytes(sys.PtraceSetSigMask, t.TID, uintptr(len(b)), b[:])
	return t.wrap("set signal mask of", err)
}

// SigInfo is the siginfo_t of the signal in hand, sys.SigInfoSize bytes.
func (t *Task) SigInfo() ([]byte, error) {
	b := make([]byte, sys.SigInfoSize)
	_, err := sys.PtraceBytes(sys.PtraceGetSigInfo, t.TID, 0, b)
	return b, t.wrap("read signal of", err)
}

// SetSigInfo changes the signal in hand.
// Precondition: the task is in a stop of kind Signal.
func (t *Task) SetSigInfo(b []byte) error {
	_, err := sys.PtraceBytes(sys.PtraceSetSigInfo, t.TID, 0, b)
	return t.wrap("set signal of", err)
}

// peekShared is PTRACE_PEEKSIGINFO_SHARED.
const peekShared = 1

// PeekSigInfo reads the queued signals, oldest first, each a siginfo_t of
// sys.SigInfoSize bytes: those of the thread, or those of its process.
func (t *Task) PeekSigInfo(shared bool) (all [][]byte, err error) {
	const many = 32
	args := sys.PeekSigInfoArgs{Count: many}
	if shared {
		args.Flags = peekShared
	}
	for {
		b := make([]byte, many*sys.SigInfoSize)
		n, err := sys.PtracePeekSigInfos(t.TID, args, b)
		if err != nil {
			return nil, t.wrap("read queued signals of", err)
		}
		for i := range n {
			all = append(all, b[i*sys.SigInfoSize:(i+1)*sys.SigInfoSize:(i+1)*sys.SigInfoSize])
		}
		if n == 0 {
			return all, nil
		}
		args.Off += uint64(n)
	}
}

// RSeq is a thread's registration of restartable sequences, rseq(2).
// Pointer is 0 if there is none.
type RSeq struct {
	Pointer   uint64
	Size      uint32
	Signature uint32
	Flags     uint32
}

// RSeq reads the registration (struct ptrace_rseq_configuration, Linux 5.13).
func (t *Task) RSeq() (RSeq, error) {
	var b [24]byte
	_, err := sys.PtraceBytes(sys.PtraceGetRseqConfiguration, t.TID, uintptr(len(b)), b[:])
	return RSeq{
		Pointer:   binary.NativeEndian.Uint64(b[:]),
		Size:      binary.NativeEndian.Uint32(b[8:]),
		Signature: binary.NativeEndian.Uint32(b[12:]),
		Flags:     binary.NativeEndian.Uint32(b[16:]),
	}, t.wrap("read rseq of", err)
}

// sockFilterSize is the size of struct sock_filter, one instruction of a filter.
const sockFilterSize = 8

// SeccompFilter reads the program of the i-th seccomp filter, the last installed
// being 0. ENOENT says that there are no more.
func (t *Task) SeccompFilter(i int) ([]byte, error) {
	n, err := sys.Ptrace(sys.PtraceSeccompGetFilter, t.TID, uintptr(i), 0)
	if err != nil {
		return nil, t.wrap("read seccomp filter of", err)
	}
	b := make([]byte, int(n)*sockFilterSize)
	_, err = sys.PtraceBytes(sys.PtraceSeccompGetFilter, t.TID, uintptr(i), b)
	return b, t.wrap("read seccomp filter of", err)
}

// SeccompFlags reads the SECCOMP_FILTER_FLAG_* of the i-th filter.
func (t *Task) SeccompFlags(i int) (uint64, error) {
	var b [16]byte // struct seccomp_metadata: filter_off, flags
	binary.NativeEndian.PutUint64(b[:], uint64(i))
	_, err := sys.PtraceBytes(sys.PtraceSeccompGetMetadata, t.TID, uintptr(len(b)), b[:])
	return binary.NativeEndian.Uint64(b[8:]), t.wrap("read seccomp flags of", err)
}

// debugRegs is offsetof(struct user, u_debugreg) on x86-64.
const debugRegs = 848

// DebugRegs reads the hardware breakpoints. 4 and 5 do not exist and are 0.
func (t *Task) DebugRegs() (d [8]uint64, err error) {
	for i := range d {
		if d[i], err = sys.PtracePeekUserWord(t.TID, debugRegs+8*uintptr(i)); err != nil {
			return d, t.wrap("read debug registers of", err)
		}
	}
	return d, nil
}

// SetDebugRegs sets the hardware breakpoints: addresses first, then the status
// and the control register that arms them.
func (t *Task) SetDebugRegs(d [8]uint64) error {
	for _, i := range []int{0, 1, 2, 3, 6, 7} {
		_, err := sys.Ptrace(sys.PtracePokeUser, t.TID, debugRegs+8*uintptr(i), uintptr(d[i]))
		if err != nil {
			return t.wrap("set debug registers of", err)
		}
	}
	return nil
}
