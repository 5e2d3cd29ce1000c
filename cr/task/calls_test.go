package task

import (
	"testing"

	"golang.org/x/sys/unix"
)

func TestSleeper(t *testing.T) {
	for _, c := range []struct {
		function string
		arg      uint64
		want     uint64 // 0: none of those that have a restart block
	}{
		{"hrtimer_nanosleep", 0x7ffc12345678, unix.SYS_NANOSLEEP},
		{"do_syscall_64", 0x7ffc12345678, unix.SYS_NANOSLEEP},
		{"do_syscall_64", 0, unix.SYS_CLOCK_NANOSLEEP},
		{"__x64_sys_restart_syscall", 0, unix.SYS_CLOCK_NANOSLEEP},
		{"hrtimer_nanosleep_restart", 1, unix.SYS_CLOCK_NANOSLEEP},
		{"hrtimer_nanosleep", 0x8049000, unix.SYS_NANOSLEEP},
		{"do_cpu_nanosleep", 0xfffffffa, unix.SYS_CLOCK_NANOSLEEP},
		{"do_cpu_nanosleep", ^uint64(5), unix.SYS_CLOCK_NANOSLEEP},
		{"alarmtimer_do_nsleep", 8, unix.SYS_CLOCK_NANOSLEEP},
		{"futex_wait_queue", 0x1000, unix.SYS_FUTEX},
		{"futex_do_wait", 0x1000, unix.SYS_FUTEX},
		{"do_poll.constprop.0", 0x1000, unix.SYS_POLL},
		{"ptrace_stop", 0x1000, 0},
		{"0", 0x1000, 0},
		{"", 0, 0},
	} {
		if got, ok := sleeper(c.function, c.arg); got != c.want || ok != (c.want != 0) {
			t.Errorf("%s(%#x): %d, %v", c.function, c.arg, got, ok)
		}
	}
}

func TestCalls(t *testing.T) {
	first := unix.PtraceRegs{Orig_rax: unix.SYS_POLL, Rdi: 1, Rsi: 2, Rdx: 3, R10: 4, R8: 5, R9: 6, Rsp: 7, Rip: 8}
	first.Rax = failed(unix.SYS_POLL, eRestartBlock).Rax
	second := first
	second.Orig_rax = unix.SYS_RESTART_SYSCALL
	k := Calls{}
	if got := k.original(5, &second); got != unix.SYS_RESTART_SYSCALL {
		t.Errorf("nothing is known, and it is call %d", got)
	}
	k.Stopped(5, &first)
	k.Stopped(5, &second) // does not say what it is
	if got := k.original(5, &second); got != unix.SYS_POLL {
		t.Errorf("call %d", got)
	}
	if got := k.original(5, &first); got != unix.SYS_POLL {
		t.Errorf("the first time: call %d", got)
	}
	for name, change := range map[string]func(*unix.PtraceRegs){
		"another thread's": nil,
		"argument":         func(r *unix.PtraceRegs) { r.R9++ },
		"stack":            func(r *unix.PtraceRegs) { r.Rsp -= 8 },
		"place":            func(r *unix.PtraceRegs) { r.Rip += 2 },
	} {
		other, tid := second, 5
		if change == nil {
			tid = 6
		} else {
			change(&other)
		}
		if got := k.original(tid, &other); got != unix.SYS_RESTART_SYSCALL {
			t.Errorf("%s: call %d", name, got)
		}
	}
	done := first
	done.Rax = 0
	k.Stopped(6, &done)
	if len(k) != 1 {
		t.Errorf("a call that is over is noted: %v", k)
	}
}
