package remote

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/stasis-cr/stasis/cr/errs"
)

// status is what /proc/PID/status says about signals and seccomp. Signal n is
// bit n-1 of a set.
type status struct {
	tgid    int
	pending uint64 // of the thread and of its process
	blocked uint64
	ignored uint64
	caught  uint64
	seccomp bool
}

func readStatus(tid int) (status, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
		return status{}, fmt.Errorf("status of task %d: %w", tid, errs.ErrGone)
	}
	if err != nil {
		return status{}, fmt.Errorf("status of task %d: %w", tid, err)
	}
	st, err := parseStatus(string(b))
	if err != nil {
		return st, fmt.Errorf("status of task %d: %w", tid, err)
	}
	return st, nil
}

func parseStatus(text string) (st status, err error) {
	for line := range strings.Lines(text) {
		key, val, _ := strings.Cut(line, ":")
		val = strings.TrimSpace(val)
		var n uint64
		switch key {
		case "Tgid":
			st.tgid, err = strconv.Atoi(val)
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
