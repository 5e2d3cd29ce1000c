// Command stasis checkpoints and restores running OCI containers. Its command
// line is that of runc, so whatever drives runc can drive it: checkpoint and
// restore are done here, check and inspect are added, and every other command is
// handed, as it is, to the host's own OCI runtime.
//
// A failure is one line: first and alone on stderr, and last in the file of
// --log. Callers such as containerd keep no more of it than that.
package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/stasis-cr/stasis/cr/lazy"
	"github.com/stasis-cr/stasis/images"
)

func main() { os.Exit(run()) }

// run lets deferred calls happen before the process exits. SIGINT, SIGTERM and
// SIGHUP cancel the engine's work, which then puts the container back; without
// that they would leave it frozen.
func run() int {
	if status, ours := lazy.Main(os.Args, appendRestoreLog); ours {
		return status
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	a := &app{
		out:    os.Stdout,
		err:    os.Stderr,
		env:    os.Environ(),
		exec:   syscall.Exec,
		engine: realEngine(),
	}
	return a.run(ctx, os.Args[1:])
}

// appendRestoreLog is the log of who fills memory after a restore: what concerns
// the container is told where the restore told its own.
func appendRestoreLog(dir string) *slog.Logger {
	h, err := images.AppendLog(dir, "restore.log")
	if err != nil {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(h)
}
