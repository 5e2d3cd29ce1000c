//go:build unix

package dir

import (
	"errors"
	"os"
	"syscall"
)

// lock takes the directory for one writer. flock(2) belongs to the open file:
// the kernel drops it when the last descriptor goes, however the process ends.
func lock(f *os.File) error {
	err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return ErrBusy
	}
	return err
}
