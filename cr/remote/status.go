package remote

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/cr/procfs"
	"golang.org/x/sys/unix"
)

// status is what /proc/PID/status says about signals and seccomp. Signal n is
// bit n-1 of a set.
type status struct {
	pending uint64 // of the thread and of its process
	blocked uint64
	ignored uint64
	caught  uint64
	seccomp bool
}

func readStatus(tid int) (status, error) {
	b, err := readProc(tid, "status")
	if err != nil {
		return status{}, err
	}
	st, err := parseStatus(string(b))
	if err != nil {
		return st, fmt.Errorf("status of task %d: %w", tid, err)
	}
	return st, nil
}

// readProc reads a file of /proc/TID.
func readProc(tid int, name string) ([]byte, error) {
	b, err := procfs.ReadFile(fmt.Sprintf("/proc/%d/%s", tid, name))
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
		err = fmt.Errorf("%w (%w)", errs.ErrGone, err)
	}
	return b, err
}

func parseStatus(text string) (st status, err error) {
	for line := range strings.Lines(text) {
		key, val, _ := strings.Cut(line, ":")
		val = strings.TrimSpace(val)
		var n uint64
		switch key {
		case "SigPnd", "ShdPnd":
			n, err = strconv.ParseUint(val, 16, 64)
			st.pending |= n
		case "SigBlk":
			st.blocked, err = strconv.ParseUint(val, 16, 64)
		case "SigIgn":
			st.ignored, err = strconv.ParseUint(val, 16, 64)
		case "SigCgt":
			st.caught, err = strconv.ParseUint(val, 16, 64)
		case "Seccomp":
			st.seccomp = val != "0"
		}
		if err != nil {
			return st, fmt.Errorf("line %q: %w", strings.TrimSpace(line), err)
		}
	}
	return st, nil
}
