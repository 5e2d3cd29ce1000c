package main

import (
	"context"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"sync"
	"syscall"

	"github.com/stasis-cr/stasis/cr"
)

// forwarded are the signals that a restore which stays with its container hands
// on to it, as runc does.
var forwarded = [...]os.Signal{
	syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM,
	syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH, syscall.SIGCONT,
}

// forward sends what reaches this process to the container's init, by the
// runtime's kill, until stop is called. Before there is a container that fails,
// and the signals that end programs have cancelled the restore: see main.
func forward(o *cr.RestoreOptions) (stop func()) {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, forwarded[:]...)
	var running sync.WaitGroup
	running.Go(func() {
		for s := range signals {
			if number, ok := s.(syscall.Signal); ok {
				kill(o, number)
			}
		}
	})
	return func() {
		signal.Stop(signals)
		close(signals)
		running.Wait()
	}
}

func kill(o *cr.RestoreOptions, s syscall.Signal) {
	if err := call(o, "kill", o.ID, strconv.Itoa(int(s))); err != nil {
		o.Log.Debug("signal not forwarded", slog.String("signal", s.String()), slog.String("error", err.Error()))
	}
}

// remove takes the runtime's record of a container that has ended away, as runc
// restore does when it stayed with it. With --force that is no error for a
// record that is gone already.
func remove(o *cr.RestoreOptions) {
	if err := call(o, "delete", "--force", o.ID); err != nil {
		o.Log.Warn("the container has ended, but its record stays: " + err.Error()) //nolint:sloglint // a line for people
	}
}

// call runs a short command of the runtime. It is not cancelled with the rest:
// that could lose a signal, or leave the record.
func call(o *cr.RestoreOptions, args ...string) error {
	args = append(append([]string(nil), o.RuntimeArgs...), args...)
	return exec.CommandContext(context.Background(), o.Runtime, args...).Run()
}
