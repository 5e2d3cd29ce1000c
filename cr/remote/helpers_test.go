package remote

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// helpers are programs that are visited, and check that nothing happened to them.
func helpers() map[string]func() error {
	return map[string]func() error{
		"nanosleep": timed(func(d time.Duration) error {
			ts := unix.NsecToTimespec(int64(d))
			return unix.Nanosleep(&ts, nil)
		}),
		"poll": timed(func(d time.Duration) error {
			return wantZero(unix.Syscall(unix.SYS_POLL, 0, 0, uintptr(d.Milliseconds())))
		}),
		"futex":    timed(futexSleep),
		"blocked":  timed(blockedSleep),
		"read":     readLoop,
		"busy":     busy,
		"routines": routines,
		"ppoll":    maskedPoll,
		"idle":     idle,
		"queue":    queue,
		"filtered": filtered,
		"visit":    visitForever,
	}
}

const (
	sleepTime  = time.Second / 2
	sleepSlack = 300 * time.Millisecond // a busy machine's
)

// timed runs a call that sleeps, which must take as long as if nothing
// happened, and succeed.
func timed(sleep func(time.Duration) error) func() error {
	return func() error {
		runtime.LockOSThread()
		signal.Ignore(unix.SIGURG, unix.SIGWINCH) // as most programs do by default
		fmt.Println("ready")
		for range 2 {
			begin := time.Now()
			if err := sleep(sleepTime); err != nil {
				return err
			}
			// Without the clock going on it would start again at each visit.
			if d := time.Since(begin); d < sleepTime-time.Millisecond || d > sleepTime+sleepSlack {
				return fmt.Errorf("slept %v, not %v", d, sleepTime)
			}
		}
		return nil
	}
}

func wantZero(n, _ uintptr, e syscall.Errno) error {
	if e != 0 {
		return e
	}
	if n != 0 {
		return fmt.Errorf("poll answered %d", n)
	}
	return nil
}

// maskedPoll waits for its input with a signal mask for the time of the call.
// ppoll(2) has no restart block: it is made again with the time that the kernel
// left in the program's memory, so how long it takes says nothing.
func maskedPoll() error {
	runtime.LockOSThread()
	fmt.Println("ready")
	ts := unix.NsecToTimespec(int64(time.Minute))
	fds := []unix.PollFd{{Fd: 0, Events: unix.POLLIN}}
	set := ^uint64(0)
	n, _, e := unix.Syscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&fds[0])), 1,
		uintptr(unsafe.Pointer(&ts)), uintptr(unsafe.Pointer(&set)), 8, 0)
	if e != 0 || n != 1 {
		return fmt.Errorf("ppoll: %d, %w", n, e)
	}
	var old unix.Sigset_t
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, nil, &old); err != nil || old.Val[0] != 0 {
		return fmt.Errorf("mask became %x: %w", old.Val[0], err)
	}
	return nil
}

func futexSleep(d time.Duration) error {
	var word uint32
	ts := unix.NsecToTimespec(int64(d))
	_, _, e := unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(&word)), 128, /* FUTEX_WAIT_PRIVATE */
		0, uintptr(unsafe.Pointer(&ts)), 0, 0)
	if errors.Is(e, unix.ETIMEDOUT) {
		return nil
	}
	return fmt.Errorf("futex: %w", e)
}

// blockedSleep sleeps in a thread that blocks every signal.
func blockedSleep(d time.Duration) error {
	all, old := unix.Sigset_t{Val: [16]uint64{^uint64(0)}}, unix.Sigset_t{}
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, &old); err != nil {
		return err
	}
	ts := unix.NsecToTimespec(int64(d))
	if err := unix.Nanosleep(&ts, nil); err != nil {
		return err
	}
	var now unix.Sigset_t
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &old, &now); err != nil {
		return err
	}
	if now.Val[0] != all.Val[0]&^(1<<8|1<<18) { // SIGKILL and SIGSTOP
		return fmt.Errorf("mask became %x", now.Val[0])
	}
	return nil
}

// readLoop blocks in read(2) until a newline comes.
func readLoop() error {
	fmt.Println("ready")
	var b [16]byte
	n, err := syscall.Read(0, b[:])
	if err != nil || string(b[:n]) != "go on\n" {
		return fmt.Errorf("read %q: %w", b[:n], err)
	}
	return nil
}

// work is a calculation that uses general and vector registers, and flags.
func work() (uint64, float64) {
	h, f := uint64(14695981039346656037), 1.0
	for i := range uint64(2_000_000) {
		h = (h ^ i) * 1099511628211
		if h&1 == 0 {
			f += 1 / float64(i+1)
		} else {
			f *= 1.0000001
		}
	}
	return h, f
}

// untilInputEnv makes a helper work until a line of input comes, not for a time.
const untilInputEnv = "STASIS_REMOTE_UNTIL_INPUT"

// goingOn tells a working helper whether it is to go on.
func goingOn() func() bool {
	if os.Getenv(untilInputEnv) == "" {
		end := time.Now().Add(2 * sleepTime)
		return func() bool { return time.Now().Before(end) }
	}
	var over atomic.Bool
	go func() {
		_, _ = bufio.NewReader(os.Stdin).ReadString('\n') // the end of input is an end as well
		over.Store(true)
	}()
	return func() bool { return !over.Load() }
}

func busy() error {
	h, f := work()
	fmt.Println("ready")
	for on := goingOn(); on(); {
		if h2, f2 := work(); h2 != h || f2 != f {
			return fmt.Errorf("%x %v became %x %v", h, f, h2, f2)
		}
	}
	return nil
}

// routines keeps Go's scheduler preempting goroutines and its collector busy.
func routines() error {
	h, f := work()
	fmt.Println("ready")
	var wg sync.WaitGroup
	errs := make(chan error, 8)
	on := goingOn()
	for range 8 {
		wg.Go(func() {
			for on() {
				if h2, f2 := work(); h2 != h || f2 != f {
					errs <- fmt.Errorf("%x %v became %x %v", h, f, h2, f2)
					return
				}
				b := make([]*int, 1000)
				for i := range b {
					b[i] = new(int)
				}
				runtime.Gosched()
			}
		})
	}
	wg.Wait()
	close(errs)
	return <-errs
}

// idle waits in a sleep until its input ends.
func idle() error {
	fmt.Println("ready")
	_, err := bufio.NewReader(os.Stdin).ReadString('\n')
	return err
}

// queued is how many signals queue wants to see.
const queued = 300

// queue counts real-time signals, which must neither get lost nor double.
func queue() error {
	runtime.LockOSThread()
	const sig = 50
	set := uint64(1) << (sig - 1)
	mask := unix.Sigset_t{Val: [16]uint64{set}}
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &mask, nil); err != nil {
		return err
	}
	fmt.Println("ready")
	fmt.Println(unix.Gettid())
	ts := unix.NsecToTimespec(int64(2 * sleepTime))
	for n := 0; ; {
		got, _, e := unix.Syscall6(unix.SYS_RT_SIGTIMEDWAIT, uintptr(unsafe.Pointer(&set)), 0,
			uintptr(unsafe.Pointer(&ts)), 8, 0, 0)
		switch {
		case e == unix.EINTR: // ptrace alone does that (signal(7))
		case e == unix.EAGAIN && n == queued:
			return nil
		case e != 0 || got != sig:
			return fmt.Errorf("after %d signals: %d, %w", n, got, e)
		default:
			n++
		}
	}
}

// filtered idles under a seccomp filter that lets it do little more than read
// and write, and answers everything else by killing the process.
func filtered() error {
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	f := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}} // the number
	allowed := []uint32{unix.SYS_READ, unix.SYS_WRITE, unix.SYS_EXIT_GROUP, unix.SYS_RT_SIGRETURN}
	for i, nr := range allowed {
		f = append(f, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: nr, Jt: uint8(len(allowed) - i)})
	}
	f = append(f, unix.SockFilter{Code: unix.BPF_RET, K: unix.SECCOMP_RET_KILL_PROCESS},
		unix.SockFilter{Code: unix.BPF_RET, K: unix.SECCOMP_RET_ALLOW})
	prog := unix.SockFprog{Len: uint16(len(f)), Filter: &f[0]}
	_, _, e := unix.RawSyscall(unix.SYS_PRCTL, unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER,
		uintptr(unsafe.Pointer(&prog)))
	if e != 0 {
		return e
	}
	b := []byte("ready\n")
	_, _, _ = unix.RawSyscall(unix.SYS_WRITE, 1, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	_, _, e = unix.RawSyscall(unix.SYS_READ, 0, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	good := []byte("good\n")
	_, _, _ = unix.RawSyscall(unix.SYS_WRITE, 1, uintptr(unsafe.Pointer(&good[0])), uintptr(len(good)))
	_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, uintptr(e), 0, 0)
	return nil
}

// pidEnv tells visitForever whom to visit.
const pidEnv = "STASIS_REMOTE_PID"

// visitForever is an engine that is killed, by a fault point or by the test.
func visitForever() error {
	runtime.LockOSThread()
	pid, err := strconv.Atoi(os.Getenv(pidEnv))
	if err != nil {
		return err
	}
	fmt.Println("ready")
	for {
		if err := visitAll(context.Background(), pid, 80); err != nil {
			return err
		}
	}
}
