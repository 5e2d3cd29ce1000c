package remote

import (
	"bytes"
	"errors"
	"testing"

	"github.com/stasis-cr/stasis/cr/errs"
	"golang.org/x/sys/unix"
)

func TestChooseBell(t *testing.T) {
	const (
		urg, winch, chld, pipe = 1 << 22, 1 << 27, 1 << 16, 1 << 12
		usual                  = urg | winch | chld
	)
	for _, c := range []struct {
		name string
		st   status
		mask uint64
		want bell
	}{
		{"nothing special", status{}, 0, bell{unix.SIGURG, false, false}},
		{"caught", status{caught: urg}, 0, bell{unix.SIGWINCH, false, false}},
		{"pending", status{pending: urg | winch}, 0, bell{unix.SIGCHLD, false, false}},
		{"ignored by request", status{caught: usual, ignored: pipe}, 0, bell{unix.SIGPIPE, false, false}},
		{"all blocked", status{blocked: ^uint64(0)}, 0, bell{unix.SIGURG, true, false}},
		{"all blocked, in sigsuspend", status{}, ^uint64(0), bell{unix.SIGURG, true, false}},
		{"Go", status{caught: usual}, 0, bell{unix.SIGURG, true, true}},
		{"Go, to be preempted", status{caught: usual, pending: urg}, 0, bell{unix.SIGWINCH, true, true}},
		{"Go, in a handler", status{caught: usual, blocked: ^uint64(0)}, 0, bell{unix.SIGURG, true, true}},
	} {
		got, err := chooseBell(c.st, c.mask)
		if err != nil || got != c.want {
			t.Errorf("%s: %+v, %v; want %+v", c.name, got, err, c.want)
		}
	}
	_, err := chooseBell(status{caught: usual, pending: usual}, 0)
	if !errors.Is(err, errs.ErrUnsupported) {
		t.Errorf("no signal left: %v, want ErrUnsupported", err)
	}
}

func TestParseStatus(t *testing.T) {
	const text = "Name:\tsleep\nTgid:\t77\nPid:\t78\nNStgid:\t77\t1\nSeccomp:\t2\nSeccomp_filters:\t1\n" +
		"SigQ:\t0/31417\nSigPnd:\t0000000000000001\nShdPnd:\t0000000000000100\n" +
		"SigBlk:\t0000000000010000\nSigIgn:\t0000000001001000\nSigCgt:\tfffffffd7fbfeff8\n"
	want := status{
		pending: 0x101, blocked: 0x10000, ignored: 0x1001000,
		caught: 0xfffffffd7fbfeff8, seccomp: true,
	}
	got, err := parseStatus(text)
	if err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	if _, err := parseStatus("SigCgt:\tnonsense\n"); err == nil {
		t.Error("nonsense was taken for a set of signals")
	}
}

func TestHealed(t *testing.T) {
	neg := func(n int64) uint64 { return uint64(-n) }
	for _, c := range []struct{ rax, orig, wantRAX, wantRIP uint64 }{
		{neg(eRestartSys), unix.SYS_READ, unix.SYS_READ, 98},
		{neg(eRestartNoIntr), unix.SYS_WRITE, unix.SYS_WRITE, 98},
		{neg(eRestartNoHand), unix.SYS_PPOLL, unix.SYS_PPOLL, 98},
		{neg(eRestartBlock), unix.SYS_NANOSLEEP, unix.SYS_RESTART_SYSCALL, 98},
		{neg(int64(unix.EINTR)), unix.SYS_READ, neg(int64(unix.EINTR)), 100},
		{neg(eRestartSys), ^uint64(0), neg(eRestartSys), 100}, // not in a call
	} {
		got := healed(unix.PtraceRegs{Rax: c.rax, Orig_rax: c.orig, Rip: 100}, true)
		if got.Rax != c.wantRAX || got.Rip != c.wantRIP {
			t.Errorf("rax %d in call %d: rax %d, ip %d", int64(c.rax), int64(c.orig), int64(got.Rax), got.Rip)
		}
	}
}

func TestHealedWithoutBlock(t *testing.T) {
	r := unix.PtraceRegs{Rax: ^uint64(eRestartBlock) + 1, Orig_rax: unix.SYS_NANOSLEEP, Rip: 100}
	if got := healed(r, false); got.Rax != unix.SYS_NANOSLEEP || got.Rip != 98 {
		t.Errorf("rax %d, ip %d", int64(got.Rax), got.Rip)
	}
}

func TestStubFits(t *testing.T) {
	s := newStub(1, &unix.PtraceRegs{}, 0)
	if len(s.b) > slotSize || !bytes.HasPrefix(s.b, []byte(slotMagic)) || s.first != slotCode {
		t.Errorf("stub of %d bytes, code at %d", len(s.b), s.first)
	}
}

func TestResult(t *testing.T) {
	if _, err := result(^uint64(0)); !errors.Is(err, unix.EPERM) {
		t.Errorf("-1 is %v", err)
	}
	if ret, err := result(^uint64(0) - 4095); err != nil || int64(ret) != -4096 {
		t.Errorf("-4096 is %d, %v", int64(ret), err)
	}
}
