package task

import (
	"context"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/remote"
)

const siPID = 16 // offset of si_pid in siginfo_t of 64 bits

// StopIsNews asks a stopped parent whether it could still wait for the stop of
// its child, a pid of the container. WNOWAIT leaves the news where it is.
func StopIsNews(ctx context.Context, parent *Stopped, child int32) (news bool, err error) {
	err = visit(ctx, parent.Task, remote.VisitOptions{}, []ask{{
		what: "waitid", nr: unix.SYS_WAITID,
		args: [6]uint64{unix.P_PID, uint64(child), 0, unix.WSTOPPED | unix.WNOHANG | unix.WNOWAIT},
		out:  sigInfoSize, outArg: 2,
		done: func(_ uint64, b []byte) error {
			news = le.Uint32(b[siPID:]) != 0
			return nil
		},
	}})
	return news, err
}
