package object

import (
	"errors"
	"maps"
	"os"
	"testing"
	"time"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/cr/procfs"

	"golang.org/x/sys/unix"
)

func makeSignalFDs(string) ([]int, error) {
	set := unix.Sigset_t{}
	set.Val[0] = 1<<(unix.SIGUSR1-1) | 1<<(unix.SIGTERM-1) | 1<<63
	fd, err := unix.Signalfd(-1, &set, unix.SFD_NONBLOCK)
	return []int{fd}, err
}

func TestSignalFD(t *testing.T) {
	h := start(t, "signalfd")
	f := h.restore(t)
	was, err := procfs.ReadFDInfo(h.pid, h.fds[0])
	ok(t, err)
	now, err := procfs.ReadFDInfo(os.Getpid(), int(f[0].Fd()))
	ok(t, err)
	if was.SignalFD.Mask != now.SignalFD.Mask || now.SignalFD.Mask>>63 != 1 {
		t.Errorf("mask %x, restored %x", was.SignalFD.Mask, now.SignalFD.Mask)
	}
}

func makeTimerFDs(string) ([]int, error) {
	timer := func(clock, flags int, value, interval time.Duration) (int, error) {
		fd, err := unix.TimerfdCreate(clock, 0)
		spec := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(value)), Interval: unix.NsecToTimespec(int64(interval))}
		return fd, errors.Join(err, unix.TimerfdSettime(fd, flags, &spec, nil))
	}
	a, e1 := timer(unix.CLOCK_MONOTONIC, 0, time.Hour, time.Minute)
	b, e2 := timer(unix.CLOCK_REALTIME, unix.TFD_TIMER_ABSTIME, time.Duration(time.Now().Add(time.Hour).UnixNano()), 0)
	c, e3 := timer(unix.CLOCK_BOOTTIME, 0, 1, 0)
	d, e4 := timer(unix.CLOCK_MONOTONIC, 0, 0, 0)
	p := []unix.PollFd{{Fd: int32(c), Events: unix.POLLIN}}
	_, e5 := unix.Poll(p, -1)
	return []int{a, b, c, d}, errors.Join(e1, e2, e3, e4, e5)
}

func TestTimerFD(t *testing.T) {
	h := start(t, "timerfd")
	f := h.restore(t)
	for i, file := range f {
		was, err := procfs.ReadFDInfo(h.pid, h.fds[i])
		ok(t, err)
		now, err := procfs.ReadFDInfo(os.Getpid(), int(file.Fd()))
		ok(t, err)
		a, b := was.TimerFD, now.TimerFD
		if a.Clock != b.Clock || a.Ticks != b.Ticks || a.IntervalNS != b.IntervalNS {
			t.Errorf("timer %d: %+v, restored %+v", i, a, b)
		}
		if d := time.Duration(a.ValueNS - b.ValueNS).Abs(); d > time.Second {
			t.Errorf("timer %d: value is off by %v", i, d)
		}
	}
}

func makeEPolls(string) (_ []int, err error) {
	add := func(ep, fd int, events uint32, data int32) {
		e := unix.EpollEvent{Events: events, Fd: data, Pad: -data}
		err = errors.Join(err, unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, fd, &e))
	}
	ep, e1 := unix.EpollCreate1(0)
	outer, e2 := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	a, e3 := unix.Eventfd(0, 0)
	b, e4 := unix.Eventfd(1, 0)
	alias, e5 := unix.Dup(b)
	add(ep, a, unix.EPOLLIN|unix.EPOLLET, 11)
	add(ep, b, unix.EPOLLIN|unix.EPOLLONESHOT, 12)
	add(ep, alias, unix.EPOLLIN, 13)
	add(outer, ep, unix.EPOLLIN, 14)
	moved, e6 := unix.Dup(a) // then the number that is watched goes away
	e7 := unix.Close(a)
	return []int{ep, outer, moved, b, alias}, errors.Join(err, e1, e2, e3, e4, e5, e6, e7)
}

func TestEPoll(t *testing.T) {
	h := start(t, "epoll")
	img := h.capture(t)
	r := img.restorer(t)
	// The helper's numbers, moved out of the way of the test's own.
	const shift = 500
	p := Process{PID: h.pid, Caller: &self{}, Table: &blob.FDTable{}}
	for i, n := range h.fds {
		id := img.file(t, h, i).Id
		f, err := r.Open(t.Context(), id)
		ok(t, err)
		ok(t, unix.Dup3(int(f.Fd()), n+shift, unix.O_CLOEXEC))
		defer unix.Close(n + shift)
		p.Table.Fds = append(p.Table.Fds, &blob.FD{Fd: int32(n + shift), File: id})
	}
	for _, rec := range r.order {
		if b, is := rec.body.(*blob.EPoll); is {
			for _, e := range b.Entries {
				e.Fd += shift
			}
		}
	}
	ok(t, r.Link(t.Context(), p))
	for _, i := range []int{0, 1} {
		was, err := procfs.ReadFDInfo(h.pid, h.fds[i])
		ok(t, err)
		now, err := procfs.ReadFDInfo(os.Getpid(), h.fds[i]+shift)
		ok(t, err)
		if a, b := entries(was, shift), entries(now, 0); !maps.Equal(a, b) {
			t.Errorf("entries %v, restored %v", a, b)
		}
	}
}

func entries(f procfs.FDInfo, shift int) map[[2]int]uint64 {
	m := map[[2]int]uint64{}
	for _, e := range f.EPoll {
		m[[2]int{e.FD + shift, int(e.Events)}] = e.Data
	}
	return m
}

func makeEPollLost(string) ([]int, error) {
	ep, e1 := unix.EpollCreate1(0)
	a, e2 := unix.Eventfd(0, 0)
	e3 := unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, a, &unix.EpollEvent{Events: unix.EPOLLIN})
	_, e4 := unix.Dup(a)
	b, e5 := unix.Eventfd(0, 0)
	e6 := unix.Dup2(b, a) // another file under the number that is watched
	return []int{ep, b}, errors.Join(e1, e2, e3, e4, e5, e6)
}

func TestEPollLost(t *testing.T) {
	err := start(t, "epolllost").refusal(t, nil)
	if !errors.Is(err, errs.ErrUnsupported) {
		t.Error(err)
	}
}
