package remote

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stasis-cr/stasis/cr/tracer"
	"golang.org/x/sys/unix"
)

const master = births | tracer.TraceExec | tracer.SuspendSeccomp | tracer.ExitKill

// ownSleep takes over a process of one thread that sleeps for a while.
func ownSleep(t *testing.T, seconds string) (*exec.Cmd, *Owned, unix.PtraceRegs) {
	t.Helper()
	needRoot(t)
	lock(t)
	cmd := exec.Command("sleep", seconds)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may be gone, which is as well
		_ = cmd.Wait()
	})
	until(t, "asleep", func() bool { return state(t, cmd.Process.Pid) == "S" })
	task, err := tracer.Seize(cmd.Process.Pid, master)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := task.Halt(t.Context(), bound); err != nil {
		t.Fatal(err)
	}
	regs, err := task.Regs()
	if err != nil {
		t.Fatal(err)
	}
	o, err := Own(t.Context(), task, 0x10_0000_0000, OwnOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if w := o.Whole(); w != (Range{0x10_0000_0000, 0x10_0004_0000}) {
		t.Errorf("scratch memory at %x", w)
	}
	return cmd, o, regs
}

func forked(t *testing.T, o *Owned, flags uint64) (*Owned, int) {
	t.Helper()
	task, pid, err := o.Fork(t.Context(), flags)
	if err != nil {
		t.Fatal(err)
	}
	child, err := OwnForked(task, o)
	if err != nil {
		t.Fatal(err)
	}
	return child, pid
}

func openChannel(t *testing.T, o *Owned) *Channel {
	t.Helper()
	ch, err := OpenChannel(t.Context(), o, 100)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ch.Close() })
	return ch
}

// TestOwnAndDrop borrows a task as a restore would, and lets it finish.
func TestOwnAndDrop(t *testing.T) {
	cmd, o, regs := ownSleep(t, "1")
	before := maps(t, cmd.Process.Pid)
	if err := checkCalls(t.Context(), o, cmd.Process.Pid, 5000); err != nil {
		t.Fatal(err)
	}
	const at = 0x20_0000_0000
	calls := []Call{
		{NR: unix.SYS_MMAP, Args: [6]uint64{
			at, pageSize, unix.PROT_READ | unix.PROT_WRITE,
			unix.MAP_PRIVATE | unix.MAP_ANONYMOUS | unix.MAP_FIXED_NOREPLACE, ^uint64(0),
		}},
		{NR: unix.SYS_MUNMAP, Args: [6]uint64{at, pageSize}},
	}
	if err := o.Batch(t.Context(), calls); err != nil || calls[0].Ret != at || calls[1].Ret != 0 {
		t.Errorf("mmap and munmap answered %x, %x (%v)", calls[0].Ret, calls[1].Ret, err)
	}
	if got := maps(t, cmd.Process.Pid); got != before {
		t.Errorf("mappings became\n%s", got)
	}
	drop(t, o, regs)
	if got := maps(t, cmd.Process.Pid); strings.Contains(got, "1000000000-") {
		t.Errorf("scratch memory is left:\n%s", got)
	}
	if err := o.t.Detach(0); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("sleep: %v", err)
	}
}

// drop gives a task back with registers, in the midst of a sleep for sleep(1).
func drop(t *testing.T, o *Owned, regs unix.PtraceRegs) {
	t.Helper()
	if err := o.Drop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := o.t.SetRegs(&regs); err != nil {
		t.Fatal(err)
	}
	if err := o.t.SetSigMask(0); err != nil {
		t.Fatal(err)
	}
}

func TestOwnForks(t *testing.T) {
	cmd, o, _ := ownSleep(t, "60")
	parent := o
	for i := range 20 {
		child, pid := forked(t, parent, uint64(unix.SIGCHLD))
		if pid != child.t.TID {
			t.Errorf("pid %d of task %d", pid, child.t.TID)
		}
		if err := checkCalls(t.Context(), child, pid, 9); err != nil {
			t.Fatal(err)
		}
		ppid, err := child.Call(t.Context(), unix.SYS_GETPPID)
		if err != nil || int(ppid) != parent.t.TID {
			t.Errorf("parent %d, want %d: %v", ppid, parent.t.TID, err)
		}
		if i%2 == 1 { // a grandchild next
			parent = child
		}
	}
	if err := checkCalls(t.Context(), o, cmd.Process.Pid, 9); err != nil {
		t.Fatal(err)
	}
}

func TestOwnThreads(t *testing.T) {
	cmd, o, regs := ownSleep(t, "1")
	var threads []*Owned
	for range 3 {
		thread, tid := forked(t, o, unix.CLONE_VM|unix.CLONE_FS|unix.CLONE_FILES|
			unix.CLONE_SIGHAND|unix.CLONE_THREAD|unix.CLONE_SYSVSEM)
		threads = append(threads, thread)
		if err := checkCalls(t.Context(), thread, tid, 9); err != nil {
			t.Fatal(err)
		}
		pid, err := thread.Call(t.Context(), unix.SYS_GETPID)
		if err != nil || int(pid) != cmd.Process.Pid {
			t.Errorf("pid %d: %v", pid, err)
		}
	}
	for _, thread := range threads {
		if err := thread.Forget(t.Context()); err != nil {
			t.Fatal(err)
		}
		r := regs
		r.Rax, r.Orig_rax = unix.SYS_EXIT, ^uint64(0)
		r.Rip -= syscallInsnBytes
		if err := thread.t.SetRegs(&r); err != nil {
			t.Fatal(err)
		}
	}
	drop(t, o, regs)
	for _, task := range append(threads, o) {
		if err := task.t.Detach(0); err != nil {
			t.Fatal(err)
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("sleep: %v", err)
	}
}

func TestOwnEnds(t *testing.T) {
	_, o, _ := ownSleep(t, "60")
	for _, c := range []struct {
		name string
		end  func(ctx context.Context, o *Owned) error
		want unix.WaitStatus
	}{
		{"exit", func(ctx context.Context, o *Owned) error { return o.Exit(ctx, 42) }, 42 << 8},
		{"term", func(ctx context.Context, o *Owned) error { return o.ExitBySignal(ctx, unix.SIGTERM) }, 15},
		{"usr1", func(ctx context.Context, o *Owned) error { return o.ExitBySignal(ctx, unix.SIGUSR1) }, 10},
		{"segv", func(ctx context.Context, o *Owned) error { return o.ExitBySignal(ctx, unix.SIGSEGV) }, 11},
		{"kill", func(ctx context.Context, o *Owned) error { return o.ExitBySignal(ctx, unix.SIGKILL) }, 9},
	} {
		child, pid := forked(t, o, uint64(unix.SIGCHLD))
		if err := c.end(t.Context(), child); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if s := state(t, pid); s != "Z" {
			t.Errorf("%s: state %s", c.name, s)
		}
		status, err := o.Push(make([]byte, 8))
		if err != nil {
			t.Fatal(err)
		}
		got, err := o.Call(t.Context(), unix.SYS_WAIT4, uint64(pid), uint64(status))
		if err != nil || int(got) != pid {
			t.Fatalf("%s: wait4 answered %d, %v", c.name, got, err)
		}
		var b [4]byte
		if err := o.Read(status, b[:]); err != nil {
			t.Fatal(err)
		}
		if ws := unix.WaitStatus(le.Uint32(b[:])); ws != c.want {
			t.Errorf("%s: status %#x, want %#x", c.name, int(ws), int(c.want))
		}
		o.Reset()
	}
}

// TestOwnExec runs another program through a descriptor sent over a channel.
func TestOwnExec(t *testing.T) {
	cmd, o, _ := ownSleep(t, "60")
	ch := openChannel(t, o)
	path, err := exec.LookPath("cat")
	if err != nil {
		t.Fatal(err)
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for i, process := range []*Owned{o, nil, nil} {
		if process == nil { // the channel works in every child
			process, _ = forked(t, o, uint64(unix.SIGCHLD))
		}
		fds, err := ch.Send(t.Context(), process, []*os.File{f, f})
		if err != nil || len(fds) != 2 {
			t.Fatalf("sent %v: %v", fds, err)
		}
		for _, fd := range fds {
			link, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", process.t.TID, fd))
			if err != nil || link != path {
				t.Errorf("fd %d is %q: %v", fd, link, err)
			}
		}
		if i == 0 {
			continue
		}
		if err := process.Exec(t.Context(), FD(1000)); !errors.Is(err, unix.EBADF) {
			t.Errorf("exec of fd 1000: %v", err)
		}
		if err := process.Exec(t.Context(), fds[0]); err != nil {
			t.Fatal(err)
		}
		if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", process.t.TID)); err != nil || exe != path {
			t.Errorf("exe %q: %v", exe, err)
		}
		again, err := Own(t.Context(), process.t, 0, OwnOptions{Size: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		if err := checkCalls(t.Context(), again, process.t.TID, 2000); err != nil {
			t.Fatal(err)
		}
	}
	if err := checkCalls(t.Context(), o, cmd.Process.Pid, 9); err != nil {
		t.Fatal(err)
	}
}

// TestOwnTogether sends each of several processes a file of its own, over one
// channel, and has them make calls meanwhile.
func TestOwnTogether(t *testing.T) {
	_, o, _ := ownSleep(t, "60")
	ch := openChannel(t, o)
	const processes, rounds = 6, 20
	var all []*Owned
	var files []*os.File
	for i := range processes {
		child, _ := forked(t, o, uint64(unix.SIGCHLD))
		f, err := os.Create(filepath.Join(t.TempDir(), fmt.Sprint(i)))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		all, files = append(all, child), append(files, f)
	}
	turns := 0
	ready := func(int) bool { return true }
	err := Together(processes, 4, ready, func(i int, idle Idle) error {
		o := all[i]
		o.Idle(func() bool {
			turns++
			return idle()
		})
		defer o.Idle(nil)
		for range rounds {
			fds, err := ch.Send(t.Context(), o, []*os.File{files[i], files[i]})
			if err != nil {
				return err
			}
			for _, fd := range fds {
				link, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", o.t.TID, fd))
				if err != nil || link != files[i].Name() {
					t.Errorf("process %d has %q: %v", i, link, err)
				}
				if _, err := o.Call(t.Context(), unix.SYS_CLOSE, uint64(fd)); err != nil {
					return err
				}
			}
			if pid, err := o.Call(t.Context(), unix.SYS_GETPID); err != nil || int(pid) != o.t.TID {
				t.Errorf("process %d has pid %d: %v", i, pid, err)
			}
		}
		return nil
	})
	if err != nil || turns < processes*rounds {
		t.Errorf("%d turns, %v", turns, err)
	}
	ch.busy = true
	if _, err := ch.Send(t.Context(), o, files[:1]); err == nil {
		t.Error("two use the channel at once")
	}
}

// TestOwnQueue queues the very signal by which the task would say it is done.
func TestOwnQueue(t *testing.T) {
	_, o, regs := ownSleep(t, "60")
	info := make([]byte, 128)
	le.PutUint32(info, uint32(unix.SIGURG))
	le.PutUint32(info[8:], 0xffff_ffff) // SI_QUEUE
	at, err := o.Push(info)
	if err != nil {
		t.Fatal(err)
	}
	tid := uint64(o.t.TID)
	_, err = o.Call(t.Context(), unix.SYS_RT_TGSIGQUEUEINFO, tid, tid, uint64(unix.SIGURG), uint64(at))
	if err != nil {
		t.Fatal(err)
	}
	o.Reset()
	if err := checkCalls(t.Context(), o, o.t.TID, 9); err != nil {
		t.Fatal(err)
	}
	if err := o.Drop(t.Context()); err != nil {
		t.Fatal(err)
	}
	queue, err := o.t.PeekSigInfo(false)
	if err != nil || len(queue) != 1 || le.Uint32(queue[0]) != uint32(unix.SIGURG) {
		t.Errorf("queue %v: %v", queue, err)
	}
	if err := o.t.SetRegs(&regs); err != nil {
		t.Fatal(err)
	}
}
