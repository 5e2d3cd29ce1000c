package namespaces

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"

	"github.com/stasis-cr/stasis/cr/errs"
	"golang.org/x/sys/unix"
)

// setterTimeout bounds one answer of the helper. It answers within
// microseconds, unless somebody stopped it.
const setterTimeout = 5 // seconds

// PIDSetter chooses the pid of the next process or thread that is made in a pid
// namespace. clone3(2) with set_tid needs a capability in the task that forks; a
// write to /proc/sys/kernel/ns_last_pid needs it in the writer only, but the
// kernel looks at the pid namespace of whoever writes (kernel/pid_namespace.c,
// pid_ns_ctl_handler), so a helper inside does the writing.
//
// The helper holds a pid of the namespace and has the privileges of this
// process, so Close comes before any task of the container runs. It ends by
// itself when this process dies. Not safe for concurrent use.
type PIDSetter struct {
	conn  *os.File // our end of the helper's standard input and output
	pidfd int
	host  int // the helper's pid in our namespace
	pid   int // and in the container's
	done  chan error
}

// StartPIDSetter starts a helper in the pid namespace of initPID. taken names
// the pids, as the namespace numbers them, that the caller is going to need: the
// helper takes none of them. It may be nil.
//
// The caller owns the setter and closes it. A ctx that is done stops the search
// for a free pid.
func StartPIDSetter(ctx context.Context, initPID int, taken func(pid int) bool) (*PIDSetter, error) {
	if err := checkPID(initPID); err != nil {
		return nil, err
	}
	s, err := spawnSetter(initPID)
	for err == nil && taken != nil && taken(s.pid) {
		s, err = s.move(ctx, initPID, taken)
	}
	if err != nil {
		return nil, fmt.Errorf("helper in the pid namespace of task %d: %w", initPID, err)
	}
	return s, nil
}

// move starts another helper at the next pid that nobody needs and ends s. The
// kernel skips pids in use, so the other may have to move on again; it always
// moves up, which ends at the namespace's highest pid.
func (s *PIDSetter) move(ctx context.Context, initPID int, taken func(int) bool) (*PIDSetter, error) {
	want := s.pid + 1
	for taken(want) {
		want++
	}
	next, err := func() (*PIDSetter, error) {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		if err := s.Set(want - 1); err != nil {
			return nil, err
		}
		return spawnSetter(initPID)
	}()
	if err == nil && next.pid < want {
		err = fmt.Errorf("pid %d or above: got %d: %w", want, next.pid, syscall.ERANGE)
	}
	if err = errors.Join(err, s.Close()); err != nil && next != nil {
		err = errors.Join(err, next.Close())
	}
	return next, err
}

// PID returns the helper's own pid in the container's pid namespace.
func (s *PIDSetter) PID() int { return s.pid }

// Set makes last the last pid that the namespace gave out: the next process or
// thread made in it gets last+1, or the next free one above if that is in use.
func (s *PIDSetter) Set(last int) error {
	n, err := s.ask(strconv.Itoa(last))
	if err == nil && n < 0 {
		err = syscall.Errno(-n)
	}
	if err != nil {
		return fmt.Errorf("set the last pid to %d: %w", last, err)
	}
	return nil
}

// ask has the helper write text and returns what its pwrite64 answered.
func (s *PIDSetter) ask(text string) (int64, error) {
	fd := int(s.conn.Fd())
	// MSG_NOSIGNAL: a helper that is gone is an error and no SIGPIPE.
	if err := unix.Send(fd, []byte(text), unix.MSG_NOSIGNAL); err != nil {
		return 0, gone(err)
	}
	var answer [8]byte
	n, err := readRetry(fd, answer[:])
	switch {
	case errors.Is(err, syscall.EAGAIN):
		return 0, fmt.Errorf("helper did not answer: %w", errs.ErrTimeout)
	case err != nil:
		return 0, gone(err)
	case n != len(answer):
		return 0, fmt.Errorf("helper ended: %w", errs.ErrGone)
	}
	return int64(binary.LittleEndian.Uint64(answer[:])), nil
}

// gone says so if err is how a socket tells that the other end is closed.
func gone(err error) error {
	if errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
		return fmt.Errorf("helper: %w: %w", errs.ErrGone, err)
	}
	return err
}

func readRetry(fd int, b []byte) (int, error) {
	for {
		n, err := unix.Read(fd, b)
		if !errors.Is(err, syscall.EINTR) {
			return n, err
		}
	}
}

// Close ends the helper and reaps it. Closing twice is harmless.
func (s *PIDSetter) Close() error {
	if s.conn == nil {
		return nil
	}
	err := unix.PidfdSendSignal(s.pidfd, unix.SIGKILL, nil, 0)
	if errors.Is(err, syscall.ESRCH) { // it went with its namespace
		err = nil
	}
	err = errors.Join(err, s.conn.Close()) // end of input ends the helper too
	s.conn = nil
	return errors.Join(err, <-s.done, unix.Close(s.pidfd))
}

// spawnSetter starts one helper at whatever pid comes next.
func spawnSetter(initPID int) (s *PIDSetter, err error) {
	image, err := setterImage()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, image.Close()) }()
	// Opened here, because the container's /proc is read-only; what counts at a
	// write is who writes.
	knob, err := os.OpenFile("/proc/sys/kernel/ns_last_pid", os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, knob.Close()) }()
	ours, theirs, err := setterPipe()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, theirs.Close()) }()

	s = &PIDSetter{conn: ours, done: make(chan error, 1)}
	if err := s.fork(initPID, image, theirs, knob); err != nil {
		return nil, errors.Join(err, ours.Close())
	}
	if s.pid, err = innermostPID(s.host); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// setterPipe makes the two ends of the helper's standard input and output. It
// keeps messages apart, so that two requests never run into one number.
func setterPipe() (ours, theirs *os.File, err error) {
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socket pair: %w", err)
	}
	ours, theirs = os.NewFile(uintptr(p[0]), "pid setter"), os.NewFile(uintptr(p[1]), "pid setter's end")
	bound := unix.Timeval{Sec: setterTimeout}
	if err := unix.SetsockoptTimeval(p[0], unix.SOL_SOCKET, unix.SO_RCVTIMEO, &bound); err != nil {
		err = fmt.Errorf("bound the wait for an answer: %w", err)
		return nil, nil, errors.Join(err, ours.Close(), theirs.Close())
	}
	return ours, theirs, nil
}

// fork starts the helper and a goroutine that waits for it: a zombie would keep
// the init of its pid namespace from ending (kernel/pid_namespace.c,
// zap_pid_ns_processes).
func (s *PIDSetter) fork(initPID int, image, pipe, knob *os.File) error {
	err := onThread(func() error { return s.forkInside(initPID, image, pipe, knob) })
	if err == nil {
		go func() { s.done <- reap(s.host) }()
	}
	return err
}

// forkInside makes exactly one process in initPID's pid namespace. os/exec would
// make a second one the first time, to see whether pidfds work.
func (s *PIDSetter) forkInside(initPID int, image, pipe, knob *os.File) error {
	ns, err := os.Open(nsPath(initPID, "pid"))
	if err != nil {
		return err
	}
	defer ns.Close() //nolint:errcheck // opened to name a namespace only
	// For pid namespaces setns(2) changes where children go, not the caller.
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWPID); err != nil {
		return fmt.Errorf("join its pid namespace: %w", err)
	}
	path := fmt.Sprintf("/proc/self/fd/%d", image.Fd())
	// No Pdeathsig: syscall's child compares getppid with our pid, sees 0 from
	// inside the namespace and kills itself. The end of its input ends the helper.
	s.host, err = syscall.ForkExec(path, []string{"stasis-pid"}, &syscall.ProcAttr{
		Env:   []string{},
		Files: []uintptr{pipe.Fd(), pipe.Fd(), 2, knob.Fd()},
		Sys:   &syscall.SysProcAttr{PidFD: &s.pidfd},
	})
	if err != nil {
		return fmt.Errorf("start: %w", err)
	}
	return nil
}

// reap waits until the child pid is gone.
func reap(pid int) error {
	for {
		_, err := unix.Wait4(pid, nil, 0, nil)
		if !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

// setterImage returns a memory file that holds the helper's program.
func setterImage() (*os.File, error) {
	fd, err := unix.MemfdCreate("stasis-pid", unix.MFD_CLOEXEC|unix.MFD_EXEC)
	if errors.Is(err, syscall.EINVAL) { // before Linux 6.3 every memory file may be executed
		fd, err = unix.MemfdCreate("stasis-pid", unix.MFD_CLOEXEC)
	}
	if err != nil {
		return nil, fmt.Errorf("memory file: %w", err)
	}
	f := os.NewFile(uintptr(fd), "stasis-pid")
	if _, err := f.Write(setterELF()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
