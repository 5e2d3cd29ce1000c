package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// eventFD counts: with and without the semaphore's way, also above 32 bits.
func eventFD() (func() error, error) {
	type event struct {
		flags int
		count uint64
		fd    int
	}
	all := []event{
		{0, 0, 0}, {unix.EFD_NONBLOCK, 31, 0}, {unix.EFD_SEMAPHORE | unix.EFD_CLOEXEC, 3, 0}, {0, 1<<40 + 5, 0},
	}
	for i := range all {
		fd, err := unix.Eventfd(0, all[i].flags)
		if err != nil {
			return nil, err
		}
		if _, err := unix.Write(fd, binary.NativeEndian.AppendUint64(nil, all[i].count)); err != nil {
			return nil, err
		}
		all[i].fd = fd
	}
	return func() error {
		for _, e := range all {
			cl, err := unix.FcntlInt(uintptr(e.fd), unix.F_GETFD, 0)
			if err := first(err, eq("close-on-exec", cl != 0, e.flags&unix.EFD_CLOEXEC != 0)); err != nil {
				return err
			}
			if e.count == 0 {
				continue // a read would block
			}
			b := make([]byte, 8)
			if _, err := unix.Read(e.fd, b); err != nil {
				return err
			}
			want := e.count
			if e.flags&unix.EFD_SEMAPHORE != 0 {
				want = 1
			}
			if err := eq("count", binary.NativeEndian.Uint64(b), want); err != nil {
				return err
			}
		}
		_, err := unix.Read(all[1].fd, make([]byte, 8))
		return wantErr("second read", err, unix.EAGAIN)
	}, nil
}

// epoll watches other descriptors, also ones that were closed under another
// number, with user data, edge-triggered and one-shot.
func epoll() (func() error, error) {
	outer, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	inner, err := unix.EpollCreate1(0)
	if err != nil {
		return nil, err
	}
	var ev [3]int
	for i := range ev {
		if ev[i], err = unix.Eventfd(0, unix.EFD_NONBLOCK); err != nil {
			return nil, err
		}
	}
	add := func(ep, fd int, events uint32, data int32) {
		e := unix.EpollEvent{Events: events, Fd: data, Pad: -data}
		if aerr := unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, fd, &e); aerr != nil && err == nil {
			err = fmt.Errorf("EPOLL_CTL_ADD %d: %w", fd, aerr)
		}
	}
	add(outer, ev[0], unix.EPOLLIN, 1001)
	add(outer, ev[1], unix.EPOLLIN|unix.EPOLLET, 1002)
	add(outer, inner, unix.EPOLLIN, 1003)
	add(inner, ev[2], unix.EPOLLIN|unix.EPOLLONESHOT, 1004)
	if err != nil {
		return nil, err
	}
	return func() error { return epollCheck(outer, inner, ev) }, nil
}

func epollCheck(outer, inner int, ev [3]int) error {
	got := make([]unix.EpollEvent, 8)
	n, err := unix.EpollWait(outer, got, 0)
	if err := first(err, eq("events before any happened", n, 0)); err != nil {
		return err
	}
	for _, fd := range ev {
		if _, err := unix.Write(fd, binary.NativeEndian.AppendUint64(nil, 1)); err != nil {
			return err
		}
	}
	if n, err = unix.EpollWait(outer, got, 1000); err != nil {
		return err
	}
	seen := map[int32]int32{}
	for _, e := range got[:n] {
		seen[e.Fd] = e.Pad
	}
	for _, data := range []int32{1001, 1002, 1003} {
		if err := eq(fmt.Sprintf("upper half of data %d", data), seen[data], -data); err != nil {
			return err
		}
	}
	if n, err = unix.EpollWait(inner, got, 0); err != nil {
		return err
	}
	if err := first(eq("events of the inner one", n, 1), eq("its data", got[0].Fd, 1004)); err != nil {
		return err
	}
	if n, err = unix.EpollWait(inner, got, 0); err != nil {
		return err
	}
	if err := eq("events of a one-shot that was shot", n, 0); err != nil {
		return err
	}
	n, err = unix.EpollWait(outer, got, 0)
	return first(err, eq("events that are still there (level only)", n, 1), eq("its data", got[0].Fd, 1001))
}

// timerFD has one timer of each sort; expirations that nobody read stay.
func timerFD() (func() error, error) {
	type timer struct {
		what      string
		clock     int
		value, iv time.Duration
		fd        int
	}
	all := []timer{
		{"disarmed", unix.CLOCK_MONOTONIC, 0, 0, 0},
		{"far", unix.CLOCK_REALTIME, time.Hour, 7 * time.Second, 0},
		{"near", unix.CLOCK_MONOTONIC, 300 * time.Millisecond, 0, 0},
		{"expired", unix.CLOCK_BOOTTIME, time.Millisecond, 0, 0},
		{"repeating", unix.CLOCK_MONOTONIC, time.Millisecond, 20 * time.Millisecond, 0},
	}
	for i, t := range all {
		fd, err := unix.TimerfdCreate(t.clock, unix.TFD_CLOEXEC)
		if err != nil {
			return nil, err
		}
		spec := unix.ItimerSpec{
			Interval: unix.NsecToTimespec(t.iv.Nanoseconds()), Value: unix.NsecToTimespec(t.value.Nanoseconds()),
		}
		if err := unix.TimerfdSettime(fd, 0, &spec, nil); err != nil {
			return nil, err
		}
		all[i].fd = fd
	}
	time.Sleep(10 * time.Millisecond)
	return func() error {
		for _, t := range all {
			var spec unix.ItimerSpec
			if err := unix.TimerfdGettime(t.fd, &spec); err != nil {
				return err
			}
			left := time.Duration(spec.Value.Nano())
			err := first(eq("interval", time.Duration(spec.Interval.Nano()), t.iv),
				eq("time left is in range", left <= max(t.value, t.iv) && left >= t.value-time.Minute, true))
			if err == nil && t.value != 0 && t.what != "far" {
				err = expired(t.fd)
			}
			if err == nil && t.what == "repeating" { // it had expired, and goes on
				err = expired(t.fd)
			}
			if err != nil {
				return fmt.Errorf("%s timer, %v left: %w", t.what, left, err)
			}
		}
		return nil
	}, nil
}

// expired reads a timer; it blocks until one expiration is there.
func expired(fd int) error {
	b := make([]byte, 8)
	if _, err := unix.Read(fd, b); err != nil {
		return err
	}
	return eq("it expired", binary.NativeEndian.Uint64(b) > 0, true)
}

// signalFD waits for real-time signals, which the Go runtime lets block.
func signalFD() (func() error, error) {
	var set unix.Sigset_t
	const sig = 40
	set.Val[0] = 1<<(sig-1) | 1<<(unix.SIGUSR2-1)
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &set, nil); err != nil {
		return nil, err
	}
	fd, err := unix.Signalfd(-1, &set, unix.SFD_NONBLOCK|unix.SFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	me := func(sig int) error { return unix.Tgkill(os.Getpid(), unix.Gettid(), unix.Signal(sig)) }
	if err := me(sig); err != nil {
		return nil, err
	}
	return func() error {
		b := make([]byte, 128)
		for _, want := range []int{sig, int(unix.SIGUSR2)} {
			if want == int(unix.SIGUSR2) {
				if err := me(want); err != nil {
					return err
				}
			}
			n, err := unix.Read(fd, b)
			if err := first(err, eq("bytes of a signal", n, 128),
				eq("signal", int(binary.NativeEndian.Uint32(b)), want)); err != nil {
				return err
			}
		}
		_, err := unix.Read(fd, b)
		return wantErr("read without a signal", err, unix.EAGAIN)
	}, nil
}

// memFD is a sealed file in memory with contents and an offset.
func memFD() (func() error, error) {
	fd, err := unix.MemfdCreate("a memfd", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, err
	}
	if _, err := unix.Write(fd, pattern(100000, 3)); err != nil {
		return nil, err
	}
	const seals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		return nil, err
	}
	return func() error {
		got := make([]byte, 100001)
		n, err := unix.Pread(fd, got, 0)
		if err != nil {
			return err
		}
		is, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
		if err != nil {
			return err
		}
		link, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
		return first(err, eq("size", n, 100000), eq("contents", string(got[:n]) == string(pattern(n, 3)), true),
			eq("seals", is, seals), eq("name", link, "/memfd:a memfd (deleted)"), offset("memfd", fd, 100000))
	}, nil
}
