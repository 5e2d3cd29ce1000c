package sys

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TermiosSize is the size of struct termios2 (asm-generic/termbits.h).
const TermiosSize = 44

// Requests of termios2 (asm-generic/ioctls.h).
const (
	tcGets2 = 0x802c542a
	tcSets2 = 0x402c542b
)

// GetTermios reads a terminal's settings; unix.ENOTTY if f is none.
func GetTermios(f *os.File) ([]byte, error) {
	b := make([]byte, TermiosSize)
	if err := termios(f, tcGets2, b); err != nil {
		return nil, fmt.Errorf("TCGETS2: %w", err)
	}
	return b, nil
}

// SetTermios sets a terminal's settings, TermiosSize bytes.
func SetTermios(f *os.File, b []byte) error {
	if len(b) != TermiosSize {
		return fmt.Errorf("TCSETS2 of %d bytes: %w", len(b), unix.EINVAL)
	}
	if err := termios(f, tcSets2, b); err != nil {
		return fmt.Errorf("TCSETS2: %w", err)
	}
	return nil
}

func termios(f *os.File, request uintptr, b []byte) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(unsafe.Pointer(unsafe.SliceData(b))))
	if errno != 0 {
		return errno
	}
	return nil
}
