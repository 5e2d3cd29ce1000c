package object

import (
	"context"
	"fmt"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/sys"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// A timerfd is made early and started last: the time that a restore takes is none
// of the program's.
func timerFDKind() Kind {
	return Kind{
		Tag: "timerfd", Rev: 1,
		New:     func() proto.Message { return &blob.TimerFD{} },
		Match:   func(_ *Capture, d *Desc) bool { return d.anon("timerfd") },
		Capture: captureTimerFD,
		Open:    openTimerFD,
		Arm:     armTimerFD,
	}
}

// captureTimerFD reads fdinfo, where the value is always the time that is left
// (fs/timerfd.c, timerfd_show).
func captureTimerFD(_ context.Context, _ *Capture, d *Desc) (proto.Message, error) {
	t := d.info.TimerFD
	if t == nil {
		return nil, unsupported("a timerfd, and this kernel does not tell its time")
	}
	return &blob.TimerFD{
		Clock: int32(t.Clock), Ticks: t.Ticks, SettimeFlags: t.SettimeFlags, ValueNs: t.ValueNS, IntervalNs: t.IntervalNS,
	}, nil
}

// openTimerFD makes it disarmed; the clock can't be changed later.
func openTimerFD(_ context.Context, _ *Restorer, rec *record) (int, error) {
	fd, err := unix.TimerfdCreate(int(rec.body.(*blob.TimerFD).Clock), unix.TFD_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("timerfd_create: %w", err)
	}
	return fd, nil
}

// armTimerFD starts the timer with the time that was left. A wall clock timer
// with an absolute deadline keeps the deadline. A repeating one whose expirations
// nobody has read has no time left, and would go on when it is read
// (timerfd_read_iter in fs/timerfd.c): it goes on here.
func armTimerFD(_ context.Context, r *Restorer, rec *record) error {
	t, fd := rec.body.(*blob.TimerFD), int(rec.open.Fd())
	flags, value := 0, t.ValueNs
	wall := t.Clock == unix.CLOCK_REALTIME || t.Clock == unix.CLOCK_REALTIME_ALARM
	if wall && t.SettimeFlags&unix.TFD_TIMER_ABSTIME != 0 && r.env.FrozenAt != 0 && value > 0 {
		flags = int(t.SettimeFlags) & (unix.TFD_TIMER_ABSTIME | unix.TFD_TIMER_CANCEL_ON_SET)
		value += r.env.FrozenAt
	}
	if value == 0 && t.Ticks > 0 {
		value = t.IntervalNs
	}
	spec := unix.ItimerSpec{Interval: unix.NsecToTimespec(t.IntervalNs), Value: unix.NsecToTimespec(value)}
	if err := unix.TimerfdSettime(fd, flags, &spec, nil); err != nil {
		return fmt.Errorf("timerfd_settime: %w", err)
	}
	if t.Ticks == 0 {
		return nil
	}
	if err := sys.TimerFDSetTicks(fd, t.Ticks); err != nil {
		return fmt.Errorf("set %d expirations: %w", t.Ticks, err)
	}
	return nil
}
