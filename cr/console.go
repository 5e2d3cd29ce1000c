package cr

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/procfs"
	"github.com/stasis-cr/stasis/cr/sys"
)

// captureConsole records the state of the terminal that a container's init has
// as its controlling one, if it has one.
func (c *capturer) captureConsole(init *process) (*blob.Console, error) {
	st, err := procfs.ReadStat(init.hostPID)
	if err != nil || st.TTYNr == 0 {
		return nil, err
	}
	tty, err := takeTerminal(init.hostPID)
	if tty == nil || err != nil {
		return nil, err
	}
	defer tty.Close() //nolint:errcheck // it is the container's; nothing was written
	con := &blob.Console{}
	if con.Termios, err = sys.GetTermios(tty); err != nil {
		return nil, err
	}
	for _, p := range c.f.processes {
		other, err := procfs.ReadStat(p.hostPID)
		if err == nil && other.PGRP == st.TPGID && len(p.status.NSpgid) > 0 {
			con.Foreground = int32(p.status.NSpgid[len(p.status.NSpgid)-1])
			break
		}
	}
	return con, nil
}

// takeTerminal duplicates the first of a process's stdio that is a terminal.
func takeTerminal(pid int) (*os.File, error) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("pidfd of init: %w", err)
	}
	defer unix.Close(pidfd)
	for i := range 3 {
		fd, err := unix.PidfdGetfd(pidfd, i, 0)
		if errors.Is(err, unix.EBADF) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("stdio %d of init: %w", i, err)
		}
		f := os.NewFile(uintptr(fd), fmt.Sprintf("stdio %d", i))
		if isTerminal(f) {
			return f, nil
		}
		f.Close() //nolint:errcheck // only looked at
	}
	return nil, nil
}

func isTerminal(f *os.File) bool {
	_, err := sys.GetTermios(f)
	return err == nil
}

// console gives the new terminal the state of the old one. Only a task of the
// session can put a group into its foreground.
func (r *restorer) console(ctx context.Context) error {
	con := r.img.Container.Console
	if con == nil {
		return nil
	}
	var tty *os.File
	for _, f := range r.b.stdio {
		if tty == nil && f != nil && isTerminal(f) {
			tty = f
		}
	}
	if tty == nil {
		r.log.Warn("the container had a terminal and was not given one")
		return nil
	}
	if err := sys.SetTermios(tty, con.Termios); err != nil {
		return err
	}
	if con.Foreground == 0 {
		return nil
	}
	own := r.members[1].own
	fds, err := r.channel.Send(ctx, own, []*os.File{tty})
	if err != nil {
		return err
	}
	defer own.Reset()
	group, err := own.Push(binary.LittleEndian.AppendUint32(nil, uint32(con.Foreground)))
	if err != nil {
		return err
	}
	_, err = own.Call(ctx, unix.SYS_IOCTL, uint64(fds[0]), unix.TIOCSPGRP, uint64(group))
	_, e := own.Call(ctx, unix.SYS_CLOSE, uint64(fds[0]))
	return wrap(fmt.Sprintf("foreground group %d", con.Foreground), errors.Join(err, e))
}
