package cr

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/cr/fault"
	"github.com/stasis-cr/stasis/cr/tracer"
	"github.com/stasis-cr/stasis/cr/undo"
)

// blank is a container's init at the moment when the OCI runtime is done with
// it: it has executed the program of the bundle and not run one instruction.
type blank struct {
	*tracer.Task
	claim *claim
	pid   int // in our pid namespace
	stdio [3]*os.File
}

// master is how every task of a restore is traced: if we die, it dies too,
// rather than start its program from scratch.
const master = tracer.TraceFork | tracer.TraceVfork | tracer.TraceClone | tracer.TraceExec |
	tracer.SuspendSeccomp | tracer.ExitKill

// Bounds of the launch.
const (
	execBound  = 30 * time.Second // hooks of the bundle run in it
	reapBound  = 10 * time.Second
	logCapSize = 1 << 20
)

// launch creates a container from the unmodified bundle and stops its init at
// the exec of its program. The stdio and the console are ours to pass on. u
// learns how to remove everything.
func launch(ctx context.Context, o *RestoreOptions, u *undo.Stack) (b *blank, err error) {
	c, err := claimContainer(ctx, o)
	if err != nil {
		return nil, err
	}
	u.Add(func(context.Context) error { return c.drop() })
	l := &launcher{o: o, claim: c, log: filepath.Join(c.dir, "log.json"), pidFile: c.pidFile()}
	if err := l.create(ctx, u); err != nil {
		return nil, err
	}
	if err := fault.Point("created"); err != nil {
		return nil, err
	}
	pid, err := readPid(l.pidFile)
	if err != nil {
		return nil, err
	}
	t, err := tracer.Seize(pid, master)
	if err != nil {
		return nil, err
	}
	b = &blank{Task: t, claim: c, pid: pid}
	init := b // what is returned is nil on an error
	u.Add(func(context.Context) error { return init.kill() })
	if err := fault.Point("seized-init"); err != nil {
		return nil, err
	}
	if err := l.start(ctx, b); err != nil {
		return nil, err
	}
	u.Add(func(context.Context) error { return init.closeStdio() })
	if err := b.takeStdio(); err != nil {
		return nil, err
	}
	return b, fault.Point("launched")
}

type launcher struct {
	o            *RestoreOptions
	claim        *claim
	log, pidFile string
}

// create is not cancelled: a runtime that is killed on its way leaves things
// that it does not find again.
func (l *launcher) create(ctx context.Context, u *undo.Stack) error {
	ctx = context.WithoutCancel(ctx)
	args := []string{"create", "--bundle", l.o.Bundle, "--pid-file", l.pidFile}
	if l.o.NoPivot {
		args = append(args, "--no-pivot")
	}
	if l.o.ConsoleSocket != "" {
		args = append(args, "--console-socket", l.o.ConsoleSocket)
	}
	err := l.run(ctx, func(c *exec.Cmd) { c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr }, append(args, l.o.ID)...)
	if err != nil {
		return err
	}
	u.Add(func(ctx context.Context) error {
		err := deleteContainer(ctx, l.o)
		l.claim.keep = err != nil
		return err
	})
	return nil
}

// start lets the runtime's init go on to the exec of its program.
func (l *launcher) start(ctx context.Context, b *blank) error {
	fifo, err := l.execFIFO()
	if err == nil {
		return l.startByFIFO(ctx, b, fifo)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	started := make(chan error, 1)
	go func() { started <- l.run(ctx, nil, "start", l.o.ID) }()
	if err := b.awaitExec(ctx); err != nil {
		err = errors.Join(err, b.kill()) // else the runtime may wait for it for ever
		return errors.Join(<-started, err)
	}
	return <-started
}

// execFIFO opens the FIFO at which runc's init waits for `runc start`:
// fs.ErrNotExist where there is none, or where start has more to do.
func (l *launcher) execFIFO() (*os.File, error) {
	if os.Getenv("NOTIFY_SOCKET") != "" { // start waits for the program's own word
		return nil, fs.ErrNotExist
	}
	dir, err := stateDir(l.o.Root, l.o.ID)
	if err != nil {
		return nil, err
	}
	return os.OpenFile(filepath.Join(dir, "exec.fifo"), os.O_RDONLY|unix.O_NONBLOCK, 0)
}

// startByFIFO does what `runc start` does (libcontainer's exec): it opens the
// FIFO for reading, for which init waits, and removes it, for which runc calls
// the container running. To run the command takes longer than to restore a shell.
func (l *launcher) startByFIFO(ctx context.Context, b *blank, fifo *os.File) error {
	err := b.awaitExec(ctx)
	if err == nil {
		err = os.Remove(fifo.Name())
	}
	return errors.Join(err, fifo.Close())
}

// run runs the OCI runtime with a log of its own: that is where it says what
// went wrong, its stderr being the container's.
func (l *launcher) run(ctx context.Context, stdio func(*exec.Cmd), args ...string) error {
	all := append(slices.Clone(l.o.RuntimeArgs), "--log", l.log, "--log-format", "json")
	_, err := runRuntime(ctx, l.o.Runtime, append(all, args...), stdio)
	if err == nil {
		return nil
	}
	if why := lastError(l.log); why != "" {
		return fmt.Errorf("%s %s: %s", filepath.Base(l.o.Runtime), args[0], why)
	}
	return err
}

// lastError is the last error of a runtime's JSON log.
func lastError(path string) string {
	b, err := os.ReadFile(path)
	if err != nil || len(b) > logCapSize {
		return ""
	}
	var last string
	for line := range bytes.Lines(b) {
		var rec struct{ Level, Msg string }
		if json.Unmarshal(line, &rec) == nil && rec.Level == "error" {
			last = rec.Msg
		}
	}
	return last
}

func readPid(path string) (int, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}

// awaitExec lets the runtime's init do its work up to the exec of the program.
func (b *blank) awaitExec(ctx context.Context) error {
	end := time.Now().Add(execBound)
	for {
		stop, err := b.Wait(ctx, time.Until(end))
		if err != nil {
			return fmt.Errorf("exec of the container's program: %w", err)
		}
		switch {
		case stop.Kind == tracer.Gone:
			return fmt.Errorf("the container's init ended before its program began (status %#x)", int(stop.Status))
		case stop.Kind == tracer.Event && stop.Event == unix.PTRACE_EVENT_EXEC:
			return nil
		case stop.Kind == tracer.Signal:
			err = b.Cont(int(stop.Signal))
		default:
			err = b.passOn(stop) //nolint:contextcheck // bounded: half a fork can't be left
		}
		if err != nil {
			return err
		}
	}
}

// passOn lets a birth on the way to the exec go its own way: a thread of the
// runtime's init ends with the exec, a child is none of ours.
func (b *blank) passOn(stop tracer.Stop) error {
	if stop.Kind == tracer.Event {
		switch stop.Event {
		case unix.PTRACE_EVENT_FORK, unix.PTRACE_EVENT_VFORK, unix.PTRACE_EVENT_CLONE:
			msg, err := b.EventMsg()
			if err != nil {
				return err
			}
			child := tracer.Attached(int(msg), b.Task)
			if _, err := child.Wait(context.Background(), execBound); err == nil {
				if err := child.Detach(0); err != nil && !errors.Is(err, errs.ErrGone) {
					return err
				}
			}
		}
	}
	return b.Cont(0)
}

// takeStdio duplicates the stdio that the runtime gave the container.
func (b *blank) takeStdio() error {
	pidfd, err := unix.PidfdOpen(b.pid, 0)
	if err != nil {
		return fmt.Errorf("pidfd of init: %w", err)
	}
	defer unix.Close(pidfd)
	for i := range b.stdio {
		fd, err := unix.PidfdGetfd(pidfd, i, 0)
		if errors.Is(err, unix.EBADF) {
			continue
		}
		if err != nil {
			return fmt.Errorf("stdio %d of init: %w", i, err)
		}
		b.stdio[i] = os.NewFile(uintptr(fd), fmt.Sprintf("stdio %d", i))
	}
	return nil
}

func (b *blank) closeStdio() error {
	var all error
	for i, f := range b.stdio {
		if f != nil {
			all = errors.Join(all, f.Close())
			b.stdio[i] = nil
		}
	}
	return all
}

// kill ends a half-made container: init's death takes its pid namespace along.
// Our tracees must be waited for, or they stay.
func (b *blank) kill() error {
	if err := unix.Kill(b.pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill init %d: %w", b.pid, err)
	}
	for end := time.Now().Add(reapBound); time.Now().Before(end); {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WALL|unix.WNOHANG|unix.WNOTHREAD, nil)
		if errors.Is(err, unix.ECHILD) {
			return nil
		}
		if pid == b.pid && (ws.Exited() || ws.Signaled()) {
			return nil
		}
		if pid <= 0 {
			time.Sleep(time.Millisecond)
		}
	}
	return fmt.Errorf("init %d did not end within %v of SIGKILL: %w", b.pid, reapBound, errs.ErrTimeout)
}
