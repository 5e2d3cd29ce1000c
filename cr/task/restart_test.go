package task

import (
	"math"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/blob"
)

// memoryOf is a task's memory at one place.
func memoryOf(parts map[uint64][]byte) func(uint64, []byte) error {
	return func(at uint64, b []byte) error {
		if len(parts[at]) < len(b) {
			return unix.EFAULT
		}
		copy(b, parts[at])
		return nil
	}
}

func failed(nr uint64, e int64) unix.PtraceRegs {
	return unix.PtraceRegs{Orig_rax: nr, Rax: uint64(e), Rip: 0x1002}
}

func TestSettle(t *testing.T) {
	for _, c := range []struct {
		name        string
		regs        unix.PtraceRegs
		deliverable bool
		again       bool
	}{
		{"epoll_wait that the stop ended", failed(unix.SYS_EPOLL_WAIT, -4), false, true},
		{"semop that the stop ended", failed(unix.SYS_SEMOP, -4), false, true},
		{"epoll_wait that a signal ended", failed(unix.SYS_EPOLL_WAIT, -4), true, false},
		{"epoll_wait that returned", failed(unix.SYS_EPOLL_WAIT, 3), false, false},
		{"pause, which only a signal ends", failed(unix.SYS_PAUSE, -4), false, false},
		{"a read that the kernel restarts", failed(unix.SYS_READ, eRestartSys), false, false},
		{"no system call", unix.PtraceRegs{Orig_rax: math.MaxUint64, Rax: errnoWord(unix.EINTR), Rip: 0x1002}, false, false},
	} {
		regs := c.regs
		changed, err := settle(&regs, c.deliverable, nil, memoryOf(nil))
		want := c.regs
		if c.again {
			want.Rax, want.Orig_rax, want.Rip = c.regs.Orig_rax, math.MaxUint64, 0x1000
		}
		if err != nil || changed != c.again || regs != want {
			t.Errorf("%s: %v, %v, %+v", c.name, changed, err, regs)
		}
	}
}

// TestSettleGoesOn stops a thread that is about to go on with an interrupted call.
func TestSettleGoesOn(t *testing.T) {
	insn := map[uint64][]byte{0x1000: []byte(syscallInsn)}
	stopped := unix.PtraceRegs{Orig_rax: unix.SYS_POLL, Rax: eRestartBlockWord, Rip: 0x1002}
	goingOn := unix.PtraceRegs{Orig_rax: unix.SYS_POLL, Rax: unix.SYS_RESTART_SYSCALL, Rip: 0x1000}
	lost, stoppedAgain := goingOn, stopped
	lost.Orig_rax, stoppedAgain.Orig_rax = math.MaxUint64, unix.SYS_RESTART_SYSCALL
	answered := unix.PtraceRegs{Orig_rax: unix.SYS_READ, Rax: unix.SYS_RESTART_SYSCALL, Rip: 0x1002}
	for _, c := range []struct {
		name     string
		is, want unix.PtraceRegs
	}{
		{"on its way out of the kernel", goingOn, stopped},
		{"in user mode", lost, stoppedAgain},
		{"a read of as many bytes", answered, answered},
	} {
		regs := c.is
		changed, err := settle(&regs, false, nil, memoryOf(insn))
		if err != nil || changed != (c.is != c.want) || regs != c.want {
			t.Errorf("%s: %v, %v, %+v", c.name, changed, err, regs)
		}
	}
	k := Calls{}
	k.Stopped(5, &goingOn)
	if got := k.original(5, &stoppedAgain); got != unix.SYS_POLL {
		t.Errorf("it is call %d", got)
	}
}

func TestAbortSequence(t *testing.T) {
	rs := &blob.RSeq{Address: 0x5000, Size: 32}
	cs := u64s(0, 0x2000, 0x10, 0x3000)
	for _, c := range []struct {
		name  string
		rs    *blob.RSeq
		mem   map[uint64][]byte
		rip   uint64
		want  uint64
		fails bool
	}{
		{"no area", nil, nil, 0x2004, 0x2004, false},
		{"no section", rs, map[uint64][]byte{0x5008: u64s(0)}, 0x2004, 0x2004, false},
		{"at its start", rs, map[uint64][]byte{0x5008: u64s(0x6000), 0x6000: cs}, 0x2000, 0x3000, false},
		{"within", rs, map[uint64][]byte{0x5008: u64s(0x6000), 0x6000: cs}, 0x200f, 0x3000, false},
		{"behind its commit", rs, map[uint64][]byte{0x5008: u64s(0x6000), 0x6000: cs}, 0x2010, 0x2010, false},
		{"before it", rs, map[uint64][]byte{0x5008: u64s(0x6000), 0x6000: cs}, 0x1fff, 0x1fff, false},
		{"no memory", rs, nil, 0x2000, 0x2000, true},
		{"a wild pointer", rs, map[uint64][]byte{0x5008: u64s(0x6000)}, 0x2000, 0x2000, true},
	} {
		regs := unix.PtraceRegs{Rip: c.rip}
		changed, err := abortSequence(&regs, c.rs, memoryOf(c.mem))
		if regs.Rip != c.want || changed != (c.rip != c.want) || (err != nil) != c.fails {
			t.Errorf("%s: %x, %v, %v", c.name, regs.Rip, changed, err)
		}
	}
}

func TestRestartOf(t *testing.T) {
	sleep := failed(unix.SYS_NANOSLEEP, eRestartBlock)
	sleep.Rdi, sleep.Rsi = 0x100, 0x200
	clock := failed(unix.SYS_CLOCK_NANOSLEEP, eRestartBlock)
	clock.R10 = 0x200
	mem := memoryOf(map[uint64][]byte{0x200: u64s(2, 5)})
	for _, c := range []struct {
		name string
		regs unix.PtraceRegs
		mem  func(uint64, []byte) error
		left int64 // -2: none at all
	}{
		{"nanosleep", sleep, mem, 2_000_000_005},
		{"clock_nanosleep", clock, mem, 2_000_000_005},
		{"unreadable", sleep, memoryOf(nil), -1},
		{"nowhere", failed(unix.SYS_NANOSLEEP, eRestartBlock), mem, -1},
		{"poll", failed(unix.SYS_POLL, eRestartBlock), mem, -1},
		{"no restart block", failed(unix.SYS_NANOSLEEP, eRestartNoHand), mem, -2},
		{"no system call", unix.PtraceRegs{Orig_rax: math.MaxUint64, Rax: sleep.Rax}, mem, -2},
	} {
		r := restartOf(&c.regs, c.regs.Orig_rax, c.mem)
		switch {
		case r == nil && c.left != -2, r != nil && r.LeftNs != c.left:
			t.Errorf("%s: %v", c.name, r)
		case r != nil && (len(r.Args) != 6 || r.Nr != c.regs.Orig_rax || r.Args[1] != c.regs.Rsi):
			t.Errorf("%s: %v", c.name, r)
		}
	}
}

// TestRebuildRestartByAgain: a sleep of unknown rest begins anew. Neither a task
// nor memory is needed for it.
func TestRebuildRestartByAgain(t *testing.T) {
	for _, r := range []*blob.Restart{
		{Nr: unix.SYS_POLL, Args: make([]uint64, 6), LeftNs: 5},
		{Nr: unix.SYS_NANOSLEEP, Args: make([]uint64, 6), LeftNs: -1},
		{Nr: unix.SYS_NANOSLEEP, Args: []uint64{1}, LeftNs: 5},
	} {
		regs := failed(r.Nr, eRestartBlock)
		th := &blob.Thread{Restart: r, Gpr: make([]byte, GPRSize)}
		encodeRegs(&regs, th.Gpr)
		if err := rebuildRestart(t.Context(), nil, nil, th, 0); err != nil {
			t.Fatal(err)
		}
		var got unix.PtraceRegs
		decodeRegs(th.Gpr, &got)
		if got.Rax != r.Nr || got.Orig_rax != math.MaxUint64 || got.Rip != 0x1000 {
			t.Errorf("%+v", got)
		}
	}
	if err := rebuildRestart(t.Context(), nil, nil, &blob.Thread{}, 0); err != nil {
		t.Error(err)
	}
}

func TestXFeatures(t *testing.T) {
	b := make([]byte, 1024)
	le.PutUint64(b[464:], 0x2e7)
	if XFeatures(b) != 0x2e7 || XFeatures(b[:471]) != 0 || XFeatures(nil) != 0 {
		t.Errorf("%#x, %#x", XFeatures(b), XFeatures(b[:471]))
	}
}

func FuzzSettle(f *testing.F) {
	f.Add(uint64(232), uint64(1<<64-4), uint64(0x2000), []byte("memory"))
	f.Fuzz(func(t *testing.T, nr, rax, rip uint64, b []byte) {
		regs := unix.PtraceRegs{Orig_rax: nr, Rax: rax, Rip: rip}
		mem := func(_ uint64, out []byte) error {
			if len(b) < len(out) {
				return unix.EFAULT
			}
			copy(out, b)
			return nil
		}
		before := regs
		changed, err := settle(&regs, false, &blob.RSeq{Address: 8}, mem)
		if (changed || err != nil) == false && regs != before {
			t.Error("changed in silence")
		}
		_ = restartOf(&regs, nr, mem)
	})
}
