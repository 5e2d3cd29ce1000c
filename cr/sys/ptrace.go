package sys

// Requests of ptrace(2) that x/sys/unix lacks or gives without what we need
// (include/uapi/linux/ptrace.h, arch/x86/include/uapi/asm/ptrace-abi.h).
const (
	PtracePeekUser             = 0x3
	PtracePokeUser             = 0x6
	PtraceCont                 = 0x7
	PtraceSingleStep           = 0x9
	PtraceDetach               = 0x11
	PtraceSyscall              = 0x18
	PtraceSetOptions           = 0x4200
	PtraceGetSigInfo           = 0x4202
	PtraceSetSigInfo           = 0x4203
	PtraceGetRegset            = 0x4204
	PtraceSetRegset            = 0x4205
	PtraceSeize                = 0x4206
	PtraceInterrupt            = 0x4207
	PtracePeekSigInfo          = 0x4209
	PtraceGetSigMask           = 0x420a
	PtraceSetSigMask           = 0x420b
	PtraceSeccompGetFilter     = 0x420c
	PtraceSeccompGetMetadata   = 0x420d
	PtraceGetRseqConfiguration = 0x420f
)

// SigInfoSize is the size of siginfo_t.
const SigInfoSize = 128
