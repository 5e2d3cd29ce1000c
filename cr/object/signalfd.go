package object

import (
	"context"
	"fmt"

	"github.com/stasis-cr/stasis/cr/blob"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// A signalfd is a mask. The signals it would read are pending on tasks.
func signalFDKind() Kind {
	return Kind{
		Tag: "signalfd", Rev: 1,
		New:     func() proto.Message { return &blob.SignalFD{} },
		Match:   func(_ *Capture, d *Desc) bool { return d.anon("signalfd") },
		Capture: captureSignalFD,
		Open:    openSignalFD,
	}
}

// captureSignalFD takes the mask as signalfd4 wants it: fdinfo undoes the
// kernel's own inversion (fs/signalfd.c, signalfd_show_fdinfo).
func captureSignalFD(_ context.Context, _ *Capture, d *Desc) (proto.Message, error) {
	if d.info.SignalFD == nil {
		return nil, unsupported("a signalfd, and this kernel does not tell its mask")
	}
	return &blob.SignalFD{Mask: d.info.SignalFD.Mask}, nil
}

// openSignalFD gives the 64 bits of the kernel's set; the type has room for more.
func openSignalFD(_ context.Context, _ *Restorer, rec *record) (int, error) {
	set := unix.Sigset_t{}
	set.Val[0] = rec.body.(*blob.SignalFD).Mask
	fd, err := unix.Signalfd(-1, &set, unix.SFD_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("signalfd4: %w", err)
	}
	return fd, nil
}
