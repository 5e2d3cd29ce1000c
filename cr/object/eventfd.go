package object

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/stasis-cr/stasis/cr/blob"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// An eventfd is a counter and a mode. Who waits on it is a matter of the tasks.
func eventFDKind() Kind {
	return Kind{
		Tag: "eventfd", Rev: 1,
		New:     func() proto.Message { return &blob.EventFD{} },
		Match:   func(_ *Capture, d *Desc) bool { return d.anon("eventfd") },
		Capture: captureEventFD,
		Open:    openEventFD,
	}
}

// captureEventFD reads fdinfo and not the descriptor: a read would take the count.
func captureEventFD(_ context.Context, _ *Capture, d *Desc) (proto.Message, error) {
	e := d.info.EventFD
	if e == nil || e.Semaphore < 0 { // guessing would restore a different object
		return nil, unsupported("an eventfd, and this kernel does not tell its mode (Linux 6.5 does)")
	}
	return &blob.EventFD{Count: e.Count, Semaphore: e.Semaphore == 1}, nil
}

// openEventFD starts from zero and writes the count: eventfd2 takes 32 bits of it.
func openEventFD(_ context.Context, _ *Restorer, rec *record) (int, error) {
	e := rec.body.(*blob.EventFD)
	flags := unix.EFD_CLOEXEC | unix.EFD_NONBLOCK // an impossible count must not block us
	if e.Semaphore {
		flags |= unix.EFD_SEMAPHORE
	}
	fd, err := unix.Eventfd(0, flags)
	if err != nil {
		return -1, fmt.Errorf("eventfd2: %w", err)
	}
	if e.Count == 0 {
		return fd, nil
	}
	if _, err := unix.Write(fd, binary.LittleEndian.AppendUint64(nil, e.Count)); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("write count %d: %w", e.Count, err)
	}
	return fd, nil
}
