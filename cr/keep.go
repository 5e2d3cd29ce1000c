package cr

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/fault"
	"github.com/stasis-cr/stasis/cr/mem"
	"github.com/stasis-cr/stasis/cr/procfs"
)

// KeepVerb is the command that stasis runs itself with to keep trackers; see
// [KeepTrackers].
const KeepVerb = "keep-trackers"

// keptRecord says what a keeper holds: the trackers of a container, from the
// freeze of one checkpoint on. What they report as written is what differs from
// that checkpoint.
//
// A tracker lives as long as somebody holds its userfaultfd. The keeper is a
// process that does nothing else, until init ends or the next checkpoint takes
// over; that one duplicates the descriptors out of it. If the keeper is gone,
// nothing is known about what was written, and the next checkpoint is a full one.
type keptRecord struct {
	Image  string // digest of the checkpoint
	Keeper procID
	Init   procID
	Spaces []keptSpace
}

// procID is a process: its number in our pid namespace and its start, which no
// later process of that number has (field 22 of /proc/PID/stat).
type procID struct {
	PID   int
	Start uint64
}

// keptSpace is one address space: FD is the userfaultfd's number in the keeper.
type keptSpace struct {
	Proc    procID
	FD      int
	Watched []mem.Range
}

func idOf(pid int) (procID, error) {
	st, err := procfs.ReadStat(pid)
	return procID{pid, st.StartTime}, err
}

func (p procID) alive() bool {
	now, err := idOf(p.PID)
	return err == nil && now == p
}

// keepFile is where a container's record lies.
func keepFile(root, id string) string {
	return ownName("kept", root, id) + ".json"
}

// loadKept reads the record of a container; nil: nothing is kept of it.
func loadKept(path string, init int) *keptRecord {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	r := &keptRecord{}
	if json.Unmarshal(b, r) != nil || r.Init.PID != init || !r.Init.alive() || !r.Keeper.alive() {
		return nil
	}
	return r
}

// of returns what is kept of a process; nil: nothing.
func (r *keptRecord) of(pid int) *keptSpace {
	if r == nil {
		return nil
	}
	for i := range r.Spaces {
		if s := &r.Spaces[i]; s.Proc.PID == pid && s.Proc.alive() {
			return s
		}
	}
	return nil
}

// pidfd opens the keeper. Only then it is looked at: its number may have gone to
// another process since the record was read, but not from here on (pidfd_open(2)).
func (r *keptRecord) pidfd() (int, error) {
	fd, err := unix.PidfdOpen(r.Keeper.PID, 0)
	if err == nil && !r.Keeper.alive() {
		err = errors.Join(unix.ESRCH, unix.Close(fd))
	}
	if err != nil {
		return -1, fmt.Errorf("keeper of the trackers, process %d: %w", r.Keeper.PID, err)
	}
	return fd, nil
}

// take duplicates the userfaultfd of a space out of the keeper.
func (r *keptRecord) take(s *keptSpace) (*os.File, error) {
	pidfd, err := r.pidfd()
	if err != nil {
		return nil, err
	}
	defer unix.Close(pidfd)
	fd, err := unix.PidfdGetfd(pidfd, s.FD, 0)
	if err != nil {
		return nil, fmt.Errorf("tracker of process %d: %w", s.Proc.PID, err)
	}
	return os.NewFile(uintptr(fd), "userfaultfd"), nil
}

// end ends the keeper: from here on only who took the trackers has them. It is no
// error that the keeper has gone before.
func (r *keptRecord) end(path string) error {
	err := os.Remove(path)
	if errors.Is(err, os.ErrNotExist) {
		err = nil // the keeper removes it when it ends
	}
	pidfd, e := r.pidfd()
	if errors.Is(e, unix.ESRCH) {
		return err
	}
	if e == nil {
		defer unix.Close(pidfd)
		e = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
		if errors.Is(e, unix.ESRCH) {
			e = nil
		}
	}
	return errors.Join(err, e)
}

// StopFollowing ends what [CheckpointOptions.PreDump] has begun: the next
// checkpoint of the container will be a full one. It is no error that nothing
// follows it, or that it has ended.
func StopFollowing(root, id string) error {
	path := keepFile(root, id)
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("keeper of the trackers: %w", err)
	}
	r := &keptRecord{}
	if err := json.Unmarshal(b, r); err != nil {
		return fmt.Errorf("keeper of the trackers: %s: %w", path, err)
	}
	return r.end(path)
}

// keep starts a keeper for trackers. From when it returns they are the keeper's
// and may be closed.
func keep(path, image string, init int, spaces map[int]*space) (err error) {
	r := &keptRecord{Image: image}
	if r.Init, err = idOf(init); err != nil {
		return err
	}
	cmd := exec.Command("/proc/self/exe", KeepVerb, strconv.Itoa(init), path) //nolint:noctx // it lives on
	cmd.Args[0], cmd.Dir = "stasis", "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	for pid, s := range spaces {
		id, err := idOf(pid)
		if err != nil {
			continue // ended
		}
		r.Spaces = append(r.Spaces, keptSpace{id, 3 + len(cmd.ExtraFiles), s.tracker.Watched()})
		cmd.ExtraFiles = append(cmd.ExtraFiles, s.tracker.File())
	}
	if len(r.Spaces) == 0 {
		return nil
	}
	word, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("keeper of the trackers: %w", err)
	}
	defer func() { err = errors.Join(err, word.Close()) }() // without our word it ends
	if r.Keeper, err = idOf(cmd.Process.Pid); err != nil {
		return err
	}
	if err := fault.Point("keeper-started"); err != nil {
		return err
	}
	if err := writeRecord(path, r); err != nil {
		return err
	}
	if _, err := word.Write([]byte{'k'}); err != nil {
		return fmt.Errorf("keeper of the trackers: %w", err)
	}
	return cmd.Process.Release()
}

func writeRecord(path string, r *keptRecord) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// KeepTrackers is what the keeper does: it holds the descriptors that it was
// started with until the process init ends, and then removes its record. It ends
// at once if whoever started it dies before it has written the record.
func KeepTrackers(ctx context.Context, init int, record string) error {
	pidfd, err := unix.PidfdOpen(init, 0)
	if err != nil {
		return fmt.Errorf("init %d: %w", init, err)
	}
	defer unix.Close(pidfd)
	if _, err := io.ReadFull(os.Stdin, make([]byte, 1)); err != nil {
		return nil // not wanted
	}
	ended := make(chan error, 1)
	go func() { ended <- awaitEnd(pidfd) }()
	select {
	case err = <-ended:
	case <-ctx.Done():
	}
	return errors.Join(err, os.Remove(record))
}

// awaitEnd waits until the process of a pidfd has ended.
func awaitEnd(pidfd int) error {
	for {
		fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
