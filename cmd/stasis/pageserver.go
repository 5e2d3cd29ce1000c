package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"

	"github.com/stasis-cr/stasis/cr"
)

const pageServerAbout = `The page-server command gives a checkpoint to other machines, whose restore
command takes it with --page-server, until it is ended by SIGTERM. It reads the
directory, and earlier checkpoints that it needs, and writes nothing. It speaks
TLS 1.3 only, with clients that show a certificate which the CA has signed.`

// pageServerCommand serves a checkpoint.
func (a *app) pageServerCommand(g *global) *command {
	o := &cr.PageServerOptions{}
	c := &command{
		name: "page-server", summary: "give a checkpoint to other machines",
		args: "<directory>", about: pageServerAbout,
	}
	c.options = []option{
		text(&o.Listen, "listen", "HOST:PORT to listen on; with port 0 a free one is printed"),
		text(&o.Keys.Cert, "cert", "our certificate, a PEM file"),
		text(&o.Keys.Key, "key", "the certificate's key, a PEM file"),
		text(&o.Keys.CA, "ca", "the CA that signs certificates of clients, a PEM file"),
	}
	c.run = func(ctx context.Context, args []string) (int, error) {
		if len(args) != 1 {
			return 0, fmt.Errorf("%q requires exactly 1 argument(s)", c.name)
		}
		o.ImageDir, o.Log = args[0], slog.New(g.handler)
		return 0, a.pageServer(ctx, o)
	}
	return c
}

func (a *app) pageServer(ctx context.Context, o *cr.PageServerOptions) error {
	for _, f := range [][2]string{{"listen", o.Listen}, {"cert", o.Keys.Cert}, {"key", o.Keys.Key}, {"ca", o.Keys.CA}} {
		if f[1] == "" {
			return fmt.Errorf("--%s is missing", f[0])
		}
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	o.Ready = func(at net.Addr) {
		if _, err := fmt.Fprintf(a.out, "listening on %s\n", at); err != nil {
			stop(err)
		}
	}
	err := a.engine.servePages(ctx, *o)
	if cause := context.Cause(ctx); err == nil && !errors.Is(cause, context.Canceled) {
		err = cause
	}
	return err
}

// remoteOptions are the flags of a restore from a page server.
func (o *restoreFlags) remoteOptions() []option {
	r := &o.PageServer
	return []option{
		text(&r.Addr, "page-server", "HOST:PORT of a page server that has the checkpoint; it comes into --image-path"),
		text(&r.Cert, "tls-cert", "our certificate for the page server, a PEM file"),
		text(&r.Key, "tls-key", "the certificate's key, a PEM file"),
		text(&r.CA, "tls-ca", "the CA that signs the page server's certificate, a PEM file"),
		duration(&r.Patience, "page-server-timeout", "how long to try again when the page server does not answer (default: 2m)"),
	}
}

// remote checks the flags, and makes paths absolute: who fills memory later runs
// elsewhere.
func (o *restoreFlags) remote() (err error) {
	r := &o.PageServer
	files := []struct {
		name string
		path *string
	}{{"tls-cert", &r.Cert}, {"tls-key", &r.Key}, {"tls-ca", &r.CA}}
	for _, f := range files {
		switch {
		case r.Addr == "" && *f.path != "":
			return fmt.Errorf("--%s is of use with --page-server only", f.name)
		case r.Addr != "" && *f.path == "":
			return fmt.Errorf("--page-server needs --%s: nobody is spoken to without", f.name)
		case r.Addr == "":
			continue
		}
		if *f.path, err = filepath.Abs(*f.path); err != nil {
			return err
		}
	}
	return nil
}
