package object

import (
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/procfs"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

func makeLocks(dir string) (_ []int, err error) {
	name := filepath.Join(dir, "locked")
	a := open(&err, name, unix.O_RDWR|unix.O_CREAT)
	b := open(&err, name, unix.O_RDWR)
	dup, e := unix.Dup(a)
	return []int{a, b, dup}, errors.Join(err, e, unix.Flock(a, unix.LOCK_EX),
		unix.FcntlFlock(uintptr(a), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Start: 10, Len: 5}),
		unix.FcntlFlock(uintptr(a), unix.F_SETLK, &unix.Flock_t{Type: unix.F_RDLCK, Start: 100}),
		unix.FcntlFlock(uintptr(b), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Start: 20, Len: 1}))
}

func TestLocks(t *testing.T) {
	h := start(t, "locks")
	img := h.capture(t)
	want := []string{"FLOCK true 0-0", "OFD true 20-21", "POSIX false 100-0", "POSIX true 10-15"}
	var got []string
	for _, l := range img.locks {
		got = append(got, l.Kind.String()+" "+strings.TrimSpace(lockText(l)))
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Fatalf("locks %q", got)
	}
	h.stop(t)
	r := img.restorer(t)
	for i := range h.fds {
		_, err := r.Open(t.Context(), img.file(t, h, i).Id)
		ok(t, err)
	}
	// POSIX locks by calls in "the process", under its own numbers.
	p := Process{PID: h.pid, Caller: &self{}, Locks: img.locks}
	for i, l := range p.Locks {
		f, err := r.Open(t.Context(), l.File)
		ok(t, err)
		p.Locks[i] = proto.CloneOf(l)
		p.Locks[i].Fd = int32(f.Fd())
	}
	ok(t, r.Link(t.Context(), p))
	ok(t, r.Arm(t.Context(), img.locks))
	a, err := r.Open(t.Context(), img.file(t, h, 0).Id)
	ok(t, err)
	info, err := procfs.ReadFDInfo(unix.Getpid(), int(a.Fd()))
	ok(t, err)
	if len(info.Locks) != 3 {
		t.Errorf("restored %+v", info.Locks)
	}
}

func lockText(l *blob.FileLock) string {
	text := "false "
	if l.Write {
		text = "true "
	}
	return text + itoa(int(l.Start)) + "-" + itoa(int(l.End))
}
