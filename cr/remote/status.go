package remote

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"github.com/stasis-cr/stasis/cr/errs"
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

// readProc reads a file of /proc/TID. It spares the stat and the attempt to poll
// that os.ReadFile makes: a visit is short, and the container waits for it.
func readProc(tid int, name string) (b []byte, err error) {
	path := fmt.Sprintf("/proc/%d/%s", tid, name)
	defer func() {
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
			err = fmt.Errorf("%w (%w)", errs.ErrGone, err)
		}
	}()
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	b = make([]byte, 0, 8<<10)
	for {
		b = slices.Grow(b, 4<<10)
		n, err := unix.Read(fd, b[len(b):cap(b)])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, &fs.PathError{Op: "read", Path: path, Err: err}
		}
		if n == 0 {
			return b, nil
		}
		b = b[:len(b)+n]
	}
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
