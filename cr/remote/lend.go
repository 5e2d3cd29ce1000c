package remote

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/fault"
	"github.com/stasis-cr/stasis/cr/procfs"
)

// A loan is one batch of four calls: the one that makes a descriptor, one that
// copies its answer into the arguments of the last, one that rings the bell, and
// the close. The task waits for us behind the bell; if we die there, it goes on
// to the close, and then home.
const (
	lendCall = iota
	lendCopy
	lendRing
	lendClose
	lendCalls
)

// Lend makes a call that answers a descriptor, duplicates it for us, and has the
// task close it again: whatever happens to us, it does not stay there. The file
// is the caller's; name is for its errors.
func (v *Visitor) Lend(ctx context.Context, call Call, name string) (f *os.File, err error) {
	defer v.Reset()
	st, err := procfs.ReadTaskStatus(v.t.TID, v.t.TID)
	if err != nil {
		return nil, err
	}
	calls, at, err := v.loan(call, &st)
	if err != nil {
		return nil, err
	}
	taken := errors.New("the task did not come to the place where it lends")
	v.pause = &pause{left: lendCalls - lendRing, f: func() { f, taken = v.lent(at, st.TGID, name) }}
	err = v.Batch(ctx, calls)
	v.pause = nil
	for i := range calls {
		if _, e := calls[i].Result(); err == nil && e != nil {
			err = fmt.Errorf("system call %d for the %s: %w", calls[i].NR, name, e)
		}
	}
	if err == nil {
		err = taken
	}
	if err != nil && f != nil {
		err, f = errors.Join(err, f.Close()), nil
	}
	return f, err
}

// pause is a place in a batch where the task waits while f runs: behind the
// system call after which left calls are not finished.
type pause struct {
	left uint64
	f    func()
}

// loan makes the calls and says where the answer of the first will lie. at is
// where Batch puts the calls: behind what was pushed.
func (v *Visitor) loan(call Call, st *procfs.Status) (calls []Call, at Addr, err error) {
	if len(st.NStgid) == 0 || len(st.NSpid) == 0 {
		return nil, 0, fmt.Errorf("task %d has no number in its pid namespace", v.t.TID)
	}
	tgid, tid := st.NStgid[len(st.NStgid)-1], st.NSpid[len(st.NSpid)-1]
	iov, err := v.Push(make([]byte, 32))
	if err != nil {
		return nil, 0, err
	}
	first := v.base + Addr(alignUp(*v.used, entrySize))
	at = first + entryResult
	b := binary.LittleEndian.AppendUint64(nil, uint64(first)+lendClose*entrySize+8) // its first argument
	b = binary.LittleEndian.AppendUint64(b, 8)
	b = binary.LittleEndian.AppendUint64(b, uint64(at))
	b = binary.LittleEndian.AppendUint64(b, 8)
	return []Call{
		lendCall:  call,
		lendCopy:  {NR: unix.SYS_PROCESS_VM_READV, Args: [6]uint64{uint64(tid), uint64(iov), 1, uint64(iov) + 16, 1}},
		lendRing:  {NR: unix.SYS_TGKILL, Args: [6]uint64{uint64(tgid), uint64(tid), uint64(v.bell.sig)}},
		lendClose: {NR: unix.SYS_CLOSE, Args: [6]uint64{^uint64(0)}},
	}, at, v.Write(iov, b)
}

// lent duplicates the descriptor, whose number is at, while the task waits. That
// there is none, Lend finds among the answers.
func (v *Visitor) lent(at Addr, tgid int, name string) (*os.File, error) {
	if err := fault.Point("visit-lent"); err != nil {
		return nil, err
	}
	b := make([]byte, 8)
	if err := v.Read(at, b); err != nil {
		return nil, err
	}
	fd, err := result(binary.LittleEndian.Uint64(b))
	if err != nil {
		return nil, err
	}
	got, err := take(tgid, FD(fd))
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(got), name), nil
}

// paused runs what is to be done at the pause if a task that stands at r, where
// the bell was rung, has come to it.
func (v *Visitor) paused(r *unix.PtraceRegs) bool {
	p := v.pause
	if p == nil || r.Rip != uint64(v.slot)+uint64(v.stub.made) || r.R13 != p.left {
		return false
	}
	v.pause = nil
	p.f()
	return true
}
