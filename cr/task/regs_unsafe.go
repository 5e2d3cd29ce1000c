package task

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// GPRSize is the size of struct user_regs_struct.
const GPRSize = int(unsafe.Sizeof(unix.PtraceRegs{}))

// decodeRegs reads a regset of GPRSize bytes.
func decodeRegs(b []byte, regs *unix.PtraceRegs) {
	copy(unsafe.Slice((*byte)(unsafe.Pointer(regs)), GPRSize), b)
}

// encodeRegs writes a regset of GPRSize bytes.
func encodeRegs(regs *unix.PtraceRegs, b []byte) {
	copy(b, unsafe.Slice((*byte)(unsafe.Pointer(regs)), GPRSize))
}
