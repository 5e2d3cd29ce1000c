package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"syscall"

	"github.com/stasis-cr/stasis/shim/daemon"
	"github.com/stasis-cr/stasis/shim/migrate"
)

// sessionFD is where a session finds its connection.
const sessionFD = 3

func sessionOptions(c migrate.ListenConfig) migrate.SessionOptions {
	return migrate.SessionOptions{
		Keys: c.Keys, Dir: c.Dir, Log: logger(os.Stderr, c.Debug),
		Target: func(ctx context.Context, migration string) (migrate.Target, error) {
			t, err := daemon.OpenTarget(ctx, daemon.TargetOptions{
				Address: daemon.Address{Socket: c.Socket, Namespace: c.Namespace},
				Runtime: c.Runtime, Snapshotter: c.Snapshotter, LogDir: c.LogDir, Mark: migration,
			})
			if err != nil { // else it would be a Target that is not nil
				return nil, err
			}
			return t, nil
		},
	}
}

func listen(ctx context.Context, config []byte) error {
	c, err := decode[migrate.ListenConfig](config)
	if err != nil {
		return err
	}
	if _, err := c.Keys.Server(); err != nil {
		return err
	}
	o := migrate.ListenOptions{Session: sessionOptions(c)}
	t, err := o.Session.Target(ctx, "") // rather now than when a container comes
	if err != nil {
		return err
	}
	if err := t.Close(); err != nil {
		return err
	}
	o.Start = func(_ context.Context, conn *os.File) error { return startSession(config, conn) }
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", c.Listen)
	if err != nil {
		return err
	}
	if _, err := fmt.Printf("listening on %s\n", l.Addr()); err != nil {
		return errors.Join(err, l.Close())
	}
	return migrate.Listen(ctx, l, o)
}

// startSession runs a session in a process that lives on if we end.
func startSession(config []byte, conn *os.File) error {
	cmd := exec.Command("/proc/self/exe", migrate.SessionVerb, string(config)) //nolint:noctx // see above
	cmd.Args[0], cmd.Dir, cmd.Stderr = migrate.Command, "/", os.Stderr
	cmd.ExtraFiles = []*os.File{conn}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd.Run()
}

func session(ctx context.Context, config []byte) error {
	c, err := decode[migrate.ListenConfig](config)
	if err != nil {
		return err
	}
	f := os.NewFile(sessionFD, "connection")
	conn, err := net.FileConn(f)
	if err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Close(); err != nil {
		return errors.Join(err, conn.Close())
	}
	return migrate.Session(ctx, conn, sessionOptions(c))
}
