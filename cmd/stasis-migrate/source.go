package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"github.com/stasis-cr/stasis/shim/daemon"
	"github.com/stasis-cr/stasis/shim/migrate"
)

func source(ctx context.Context, config []byte) (err error) {
	c, err := decode[migrate.SourceConfig](config)
	if err != nil {
		return err
	}
	src, err := openSource(ctx, c.Place)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	bar := newBar(os.Stderr)
	r, err := migrate.Migrate(ctx, src, migrate.Options{
		To: c.To, Keys: c.Keys, Dir: c.Dir, Listen: c.Listen, Lazy: c.Lazy, Downtime: c.Downtime,
		Rounds: c.Rounds, Compress: c.Compress, Keep: c.Keep,
		Guard:    func() (*migrate.GuardProcess, error) { return startGuard(c.Place) },
		Log:      logger(os.Stderr, c.Debug),
		Progress: bar.update,
	})
	bar.end()
	if r.PID != 0 {
		if _, e := fmt.Printf("%s runs on %s as process %d: it stood still for %v; %s of memory in %d rounds, %v in all\n",
			c.ID, c.To, r.PID, r.Downtime.Round(100*time.Microsecond), size(r.Sent), r.Rounds+1,
			r.Took.Round(10*time.Millisecond)); e != nil {
			err = errors.Join(err, e)
		}
	}
	return err
}

func openSource(ctx context.Context, p migrate.Place) (*daemon.Source, error) {
	return daemon.OpenSource(ctx, daemon.Address{Socket: p.Socket, Namespace: p.Namespace}, p.ID)
}

// startGuard starts a guard in a session of its own: what ends ours does not reach
// it.
func startGuard(p migrate.Place) (*migrate.GuardProcess, error) {
	config, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("/proc/self/exe", migrate.GuardVerb, string(config)) //nolint:noctx // it lives on
	cmd.Args[0], cmd.Dir, cmd.Stderr = migrate.Command, "/", os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ended := make(chan struct{})
	go func() {
		_, _ = cmd.Process.Wait() //nolint:errcheck // what matters is that it has ended
		close(ended)
	}()
	return &migrate.GuardProcess{Stdin: stdin, Stdout: stdout, Ended: ended}, nil
}

func guard(ctx context.Context, config []byte) (err error) {
	signal.Ignore(syscall.SIGPIPE) // the source's death is what we are here for
	p, err := decode[migrate.Place](config)
	if err != nil {
		return err
	}
	src, err := openSource(ctx, p)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	return migrate.Guard(ctx, src, os.Stdin, os.Stdout, logger(os.Stderr, false))
}
