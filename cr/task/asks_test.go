package task

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/cr/remote"
)

const (
	dockerCaps = 0xa80425fb
	netBind    = 1 << unix.CAP_NET_BIND_SERVICE
)

func rootCreds() *blob.Creds {
	return &blob.Creds{CapPermitted: dockerCaps, CapEffective: dockerCaps, CapBounding: dockerCaps}
}

func userCreds(uid uint32) *blob.Creds {
	return &blob.Creds{
		Uid: uid, Euid: uid, Suid: uid, Fsuid: uid, Gid: uid, Egid: uid, Sgid: uid, Fsgid: uid, CapBounding: dockerCaps,
	}
}

// capset shows the header's version: the sets are compared in TestCapset.
const capsetLine = "capset &2205082000000000 &"

func TestSetCreds(t *testing.T) {
	with := func(c *blob.Creds, f func(*blob.Creds)) *blob.Creds { f(c); return c }
	const (
		keepCaps, dropKeep    = "prctl 8 1", "prctl 8"
		clearAmbient          = "prctl 2f 4"
		none                  = capsetLine + "0000000000000000"
		all                   = capsetLine + "fb2504a8fb2504a8"
		setGroups, noGroups   = "setgroups 2 &0a00000014000000", "setgroups 0 &0000000000000000"
		dropNetBind, raiseAmb = "prctl 18 a", "prctl 2f 2 a"
	)
	for _, c := range []struct {
		name       string
		have, want *blob.Creds
		calls      []string
	}{
		{"the same", rootCreds(), rootCreds(), nil},
		{"the same user", userCreds(1000), userCreds(1000), nil},
		{"root to user", rootCreds(), userCreds(33), []string{
			"setresgid 21 21 21", keepCaps, "setresuid 21 21 21", dropKeep, none, clearAmbient,
		}},
		{"groups", rootCreds(), with(rootCreds(), func(c *blob.Creds) { c.Groups = []uint32{10, 20} }), []string{setGroups}},
		{"no groups", with(rootCreds(), func(c *blob.Creds) { c.Groups = []uint32{10} }), rootCreds(), []string{noGroups}},
		{"bounding set", rootCreds(), with(rootCreds(), func(c *blob.Creds) { c.CapBounding &^= netBind }), []string{dropNetBind}},
		{"fewer effective", rootCreds(), with(rootCreds(), func(c *blob.Creds) { c.CapEffective = 0 }), []string{
			capsetLine + "00000000fb2504a8", clearAmbient,
		}},
		{"set-user-id program", rootCreds(), with(rootCreds(), func(c *blob.Creds) { c.Uid = 1000 }), []string{
			keepCaps, "setresuid 3e8", dropKeep, all, clearAmbient,
		}},
		{"file system ids", rootCreds(), with(rootCreds(), func(c *blob.Creds) { c.Fsuid, c.Fsgid = 5, 6 }), []string{
			"setfsgid 6", "setfsuid 5",
		}},
		{"ambient", rootCreds(), with(rootCreds(), func(c *blob.Creds) { c.CapInheritable, c.CapAmbient = netBind, netBind }), []string{
			all, clearAmbient, raiseAmb,
		}},
		{"securebits without the capability for it", userCreds(7), with(userCreds(7), func(c *blob.Creds) { c.Securebits = secbitKeepCaps }), []string{
			keepCaps, none, clearAmbient,
		}},
		{"securebits", rootCreds(), with(rootCreds(), func(c *blob.Creds) { c.Securebits = 0x2f }), []string{
			all, "prctl 1c 2f", all, clearAmbient,
		}},
	} {
		t.Run(c.name, func(t *testing.T) { said(t, setCredsAsks(c.have, c.want), c.calls...) })
	}
}

// TestCapsetLayout: struct __user_cap_header_struct and, behind it, two of
// __user_cap_data_struct.
func TestCapsetLayout(t *testing.T) {
	a := capsetAsk(0x1_0000_0002, 0x3_0000_0004, 0x5_0000_0006)
	want := u64s(0x20080522, 4<<32|2, 1<<32|6, 5<<32|3)
	if !bytes.Equal(a.in, want) || a.alsoAt != 8 || a.alsoArg != 1 || a.inArg != 0 {
		t.Errorf("% x, want % x", a.in, want)
	}
}

func TestSignals(t *testing.T) {
	p := &blob.Process{Pid: 5, Actions: []*blob.SigAction{{Signal: 2, Handler: 0x4000, Flags: 4, Restorer: 8, Mask: 1}}}
	said(t, setActionAsks(p, 1<<(2-1)|1<<(13-1)),
		"rt_sigaction 2 &0040000000000000 0 8", "rt_sigaction d &0000000000000000 0 8")

	info := func(n byte) *blob.SigInfo {
		return &blob.SigInfo{Info: append([]byte{n}, make([]byte, sigInfoSize-1)...)}
	}
	p.SharedPending = []*blob.SigInfo{info(10)}
	th := &blob.Thread{Tid: 6, Pending: []*blob.SigInfo{info(34), info(34)}}
	own := []string{"rt_tgsigqueueinfo 5 6 22 &2200000000000000", "rt_tgsigqueueinfo 5 6 22 &2200000000000000"}
	said(t, queueAsks(p, th, false), own...)
	said(t, queueAsks(p, th, true), append(own, "rt_sigqueueinfo 5 a &0a00000000000000")...)
}

func TestAskedActions(t *testing.T) {
	p := &blob.Process{}
	s := &script{answer: func(c *remote.Call, s *script) uint64 {
		if c.Args[0] == 10 {
			if s.Write(remote.Addr(c.Args[2]), u64s(0x4000, 4, 8, 1)) != nil {
				return errnoWord(unix.EFAULT)
			}
		}
		return 0
	}}
	// All of them: SIGKILL and SIGSTOP must not be asked for.
	if err := run(t.Context(), s, actionAsks(allSignals, p)); err != nil {
		t.Fatal(err)
	}
	if len(s.said) != sigMax-2 || len(p.Actions) != 1 || p.Actions[0].Signal != 10 || p.Actions[0].Restorer != 8 {
		t.Errorf("%d asks, %v", len(s.said), p.Actions)
	}
	if n := len(actionAsks(0, p)); n != 1 {
		t.Errorf("%d asks with all at their default: SIGCHLD is asked always", n)
	}
}

func TestAltStack(t *testing.T) {
	said(t, setAltStackAsks(&blob.Thread{}))
	said(t, setAltStackAsks(&blob.Thread{Altstack: &blob.SigAltStack{Flags: ssDisable}}))
	a := setAltStackAsks(&blob.Thread{Altstack: &blob.SigAltStack{Sp: 0x7000, Flags: ssOnStack | 1<<31, Size: 0x2000}})
	if len(a) != 1 || !bytes.Equal(a[0].in, u64s(0x7000, 1<<31, 0x2000)) {
		t.Errorf("%+v", a)
	}
}

// TestDrain takes signals until none is left.
func TestDrain(t *testing.T) {
	left := 3
	s := &script{answer: func(c *remote.Call, _ *script) uint64 {
		if c.NR != unix.SYS_RT_SIGTIMEDWAIT {
			return 0
		}
		if left == 0 {
			return errnoWord(unix.EAGAIN)
		}
		left--
		return 17
	}}
	p := &blob.Process{Pid: 3, Itimers: []*blob.ITimer{{Which: 1, IntervalUs: 2_500_000, ValueUs: 7}}}
	if err := Drain(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if err := FinishThread(t.Context(), s, p, &blob.Thread{Tid: 3}); err != nil {
		t.Fatal(err)
	}
	if n := len(s.said); left != 0 || strings.Count(strings.Join(s.said, " "), "rt_sigtimedwait") != 4 || s.said[n-1] != "setitimer 1 &0200000000000000" {
		t.Errorf("%d left, %q", left, s.said)
	}
}

func TestTimerLayouts(t *testing.T) {
	b := timerRequest(&blob.PosixTimer{Id: 9, Notify: sigevThreadID, Signal: 34, Value: 0x1122334455667788, Tid: 77})
	want := make([]byte, 72)
	le.PutUint64(want, 0x1122334455667788)
	le.PutUint32(want[8:], 34)
	le.PutUint32(want[12:], 4)
	le.PutUint32(want[16:], 77)
	le.PutUint32(want[64:], 9)
	if !bytes.Equal(b, want) {
		t.Errorf("% x", b)
	}
	p := &blob.Process{Timers: []*blob.PosixTimer{{Id: 1}, {Id: 2, ValueNs: 1_500_000_000, IntervalNs: 3}}}
	asks := armTimerAsks(p)
	if len(asks) != 1 || !bytes.Equal(asks[0].in, u64s(0, 3, 1, 500_000_000)) {
		t.Errorf("%+v", asks)
	}
}

// TestCreateTimers: with Linux 6.15 ids are chosen, before it they are tried.
func TestCreateTimers(t *testing.T) {
	p := &blob.Process{Timers: []*blob.PosixTimer{{Id: 0, Clock: 1}, {Id: 3, Clock: -6}}}
	s := &script{}
	if err := createTimers(t.Context(), s, p); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"prctl 4d 1", "timer_create 1 &0000000000000000 &0000000000000000",
		"timer_create fffffffffffffffa &0000000000000000 &0300000000000000", "prctl 4d",
	}
	if !slices.Equal(s.said, want) {
		t.Errorf("%q, want %q", s.said, want)
	}
	next := uint32(0)
	var deleted []uint64
	s = &script{answer: func(c *remote.Call, s *script) uint64 {
		switch c.NR {
		case unix.SYS_PRCTL:
			return errnoWord(unix.EINVAL)
		case unix.SYS_TIMER_DELETE:
			deleted = append(deleted, c.Args[0])
		case unix.SYS_TIMER_CREATE:
			if s.Write(remote.Addr(c.Args[2]), le.AppendUint32(nil, next)) != nil {
				return errnoWord(unix.EFAULT)
			}
			next++
		}
		return 0
	}}
	if err := createTimers(t.Context(), s, p); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(deleted, []uint64{1, 2}) || next != 4 {
		t.Errorf("deleted %v of %d", deleted, next)
	}
}

func TestSeccomp(t *testing.T) {
	f := NewFilters(&blob.Seccomp{Filters: []*blob.SeccompFilter{{Program: make([]byte, 8)}, {Program: make([]byte, 24), Flags: 2}}})
	if i := f.add(make([]byte, 24), 2); i != 1 {
		t.Errorf("a known filter became number %d", i)
	}
	if i := f.add(make([]byte, 24), 0); i != 2 || len(f.Record().Filters) != 3 {
		t.Errorf("a filter with other flags became number %d of %d", i, len(f.Record().Filters))
	}
	for _, c := range []struct {
		have, want []uint32
		calls      []string
		err        error
	}{
		{nil, nil, nil, nil},
		{[]uint32{0}, []uint32{0}, nil, nil},
		{[]uint32{0}, []uint32{0, 1}, []string{"seccomp 1 2 &0300000000000000"}, nil},
		{nil, []uint32{1, 0}, []string{"seccomp 1 2 &0300000000000000", "seccomp 1 0 &0100000000000000"}, nil},
		{[]uint32{0, 1}, []uint32{0}, nil, errs.ErrHost},
		{[]uint32{1}, []uint32{0, 1}, nil, errs.ErrHost},
	} {
		asks, err := f.setSeccompAsks(c.have, &blob.Thread{SeccompMode: SeccompFilter, SeccompFilters: c.want})
		if !errors.Is(err, c.err) {
			t.Errorf("%v to %v: %v", c.have, c.want, err)
			continue
		}
		said(t, asks, c.calls...)
	}
	asks, err := f.setSeccompAsks(nil, &blob.Thread{SeccompMode: SeccompStrict})
	if err != nil {
		t.Fatal(err)
	}
	said(t, asks, "prctl 16 1")
}

func TestThreadAndProcess(t *testing.T) {
	said(t, setThreadAsks(&blob.Thread{
		Comm: []byte("worker"), ClearTid: 0x50, TimerSlackNs: 0x60, RobustList: 0x70, RobustListLen: 24,
		Rseq: &blob.RSeq{Address: 0x80, Size: 32, Signature: 0x53053053},
	}), "prctl f &776f726b65720000", "set_tid_address 50", "prctl 21 1", "prctl 1d 60", "set_robust_list 70 18", "rseq 80 20 0 53053053")
	said(t, setProcessAsks(&blob.Process{Personality: 0x40000, Fs: &blob.FS{Umask: 0o22}, NoThp: true, ChildSubreaper: true}),
		"personality 40000", "umask 12", "prctl 29 1", "prctl 24 1")
	said(t, dumpableAsk(&blob.Process{Dumpable: 2}))
	said(t, dumpableAsk(&blob.Process{}), "prctl 4")
}

func TestSchedAndLimitsOfOurOwn(t *testing.T) {
	s, err := schedOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(s.Affinity, func(b byte) bool { return b != 0 }) {
		t.Error("we may run on no processor")
	}
	if err := setSched(os.Getpid(), s, s); err != nil {
		t.Error(err)
	}
	// Processors that this host lacks are left out; none is no restriction.
	far := make([]byte, 128)
	far[127] = 0x80
	if err := setAffinity(os.Getpid(), far); err != nil {
		t.Error(err)
	}
	if err := setAffinity(os.Getpid(), make([]byte, 4096)); err != nil {
		t.Error(err)
	}
	// A hostile mask is longer than any processor set.
	if err := setAffinity(os.Getpid(), bytes.Repeat([]byte{0xff}, 4096)); err != nil {
		t.Error(err)
	}
	limits, err := limitsOf(os.Getpid())
	if err != nil || len(limits) == 0 {
		t.Fatalf("%v, %v", limits, err)
	}
	if err := setLimits(t.Context(), os.Getpid(), &script{}, limits); err != nil {
		t.Error(err)
	}
}
