package remote

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/cr/sys"
	"github.com/stasis-cr/stasis/cr/tracer"
)

// findSlot finds a place for the stub. Slots that dead visits left behind stay
// as they are while there is another: some thread may still run one, or come
// back to it from a signal's handler.
func (v *Visitor) findSlot(ctx context.Context) (Addr, error) {
	s, err := findSlots(v.t.TID, v.opt.VDSO)
	if err != nil {
		return 0, err
	}
	if err := v.settle(ctx, s); err != nil {
		return 0, err
	}
	if len(s.free) > 0 {
		return s.free[0], nil
	}
	if len(s.stale) == 0 {
		return 0, fmt.Errorf("task %d has no vdso with room: %w", v.t.TID, errs.ErrUnsupported)
	}
	for _, old := range s.stale {
		busy, err := old.busy(v.t.TID)
		if err != nil {
			return 0, err
		}
		if !busy {
			return old.at, nil
		}
	}
	return 0, fmt.Errorf("task %d: %w", v.t.TID, errNoSlot)
}

var errNoSlot = fmt.Errorf("process is not done with what dead visits left behind: %w", errs.ErrUnsupported)

// within says whether an address lies in a slot.
func within(slot Addr, at uint64) bool { return at >= uint64(slot) && at < uint64(slot)+slotSize }

// A stale slot takes a task microseconds to leave.
const (
	settleTries = 50
	settleNap   = 20 * time.Microsecond
)

// settle lets a task that a dead visit left in its stub find its way home.
func (v *Visitor) settle(ctx context.Context, s slots) error {
	for try := range settleTries {
		inStub, err := v.standsIn(s.stale)
		if err != nil || !inStub {
			return err
		}
		if err := v.runFor(ctx, settleNap*time.Duration(try), s.stale); err != nil {
			return err
		}
	}
	return fmt.Errorf("task %d does not leave the stub of a dead visit: %w", v.t.TID, errs.ErrTimeout)
}

// standsIn says whether the task is in one of these slots.
func (v *Visitor) standsIn(stale []staleSlot) (bool, error) {
	r, err := v.t.Regs()
	return slices.ContainsFunc(stale, func(old staleSlot) bool { return within(old.at, r.Rip) }), err
}

// runFor lets a task run for a while and stops it again. One that job control has
// stopped may have been asked twice to stop, by our seize and by our interrupt: then
// it comes to rest at once, and to ask it once more would keep it there for ever. A
// bell that a dead visit's stub rings is swallowed, as the visit would have done.
func (v *Visitor) runFor(ctx context.Context, nap time.Duration, stale []staleSlot) error {
	if err := v.t.Cont(0); err != nil {
		return err
	}
	st, err := v.t.Wait(ctx, nap)
	if errors.Is(err, errs.ErrTimeout) {
		_, err = v.t.Halt(ctx, v.opt.Bound)
		return err
	}
	if err != nil || st.Kind != tracer.Signal {
		return err
	}
	sig := int(st.Signal)
	inStub, err := v.standsIn(stale)
	if err != nil {
		return err
	}
	info, err := v.t.SigInfo()
	if err != nil {
		return err
	}
	if inStub && sigCode(info) == siTkill {
		sig = 0
	}
	_, err = v.t.Deliver(ctx, sig, v.opt.Bound)
	return err
}

// staleSlot is what a dead visit of a thread left behind.
type staleSlot struct {
	at  Addr
	tid int // in our pid namespace
}

// busy says whether the thread stands in the slot or might come back to it: the
// frame of a signal's handler holds the address where it interrupted the thread.
// One that is not stopped counts as one that might. tid is any thread of the
// process; a thread that it has not, be it dead or another process's that
// forked, never comes back.
func (s staleSlot) busy(tid int) (bool, error) {
	text, err := readProc(tid, fmt.Sprintf("task/%d/syscall", s.tid))
	if errors.Is(err, errs.ErrGone) {
		return false, nil
	}
	if err != nil {
		return true, err
	}
	sp, pc, ok := stackAndPC(string(text))
	return !ok || within(s.at, pc) || onStack(s.tid, sp, s.at), nil
}

// stackAndPC takes the last two words of /proc/PID/syscall; a thread that runs
// shows none.
func stackAndPC(text string) (sp, pc uint64, ok bool) {
	f := strings.Fields(text)
	if len(f) < 3 {
		return 0, 0, false
	}
	sp, err := strconv.ParseUint(f[len(f)-2], 0, 64)
	if err != nil {
		return 0, 0, false
	}
	pc, err = strconv.ParseUint(f[len(f)-1], 0, 64)
	return sp, pc, err == nil
}

// deepest is how much of a stack is searched for a handler's frame. More would
// find frames that are long done with: Go's signal stacks lie close to the others.
const deepest = 16 << 10

// onStack searches a stack upwards from its pointer.
func onStack(tid int, sp uint64, slot Addr) bool {
	b := make([]byte, deepest)
	n, err := sys.ProcessRead(tid, sp&^7, b)
	if err != nil {
		return true
	}
	for b = b[:n]; len(b) >= 8; b = b[8:] {
		if within(slot, binary.NativeEndian.Uint64(b)) {
			return true
		}
	}
	return false
}
