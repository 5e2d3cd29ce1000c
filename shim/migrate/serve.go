package migrate

import (
	"context"
	"errors"
	"log/slog"
	"net"

	"github.com/stasis-cr/stasis/cr/blob/dir"
	"github.com/stasis-cr/stasis/cr/pageserver"
)

// served is a checkpoint that the other side can fetch.
type served struct {
	addr  string
	state []byte // its digest
	stop  func() error
}

// serve serves a checkpoint until stop is called.
func serve(ctx context.Context, path string, w *wire, o Options, log *slog.Logger) (*served, error) {
	at := listenAt(o.Listen, w)
	s, port, err := servePages(ctx, path, at, o.Keys, log)
	if err != nil {
		return nil, err
	}
	host, _, err := net.SplitHostPort(at)
	if err != nil {
		return nil, errors.Join(err, s.stop())
	}
	s.addr = net.JoinHostPort(host, port)
	return s, nil
}

// listenAt fills in what [Options].Listen leaves out.
func listenAt(listen string, w *wire) string {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		host, port = listen, "0"
	}
	if host == "" {
		if own, _, err := net.SplitHostPort(w.c.LocalAddr().String()); err == nil {
			host = own
		}
	}
	return net.JoinHostPort(host, port)
}

// servePages begins to serve a checkpoint; port is where.
func servePages(ctx context.Context, path, at string, k pageserver.Keys, log *slog.Logger) (_ *served, port string, err error) {
	digest, err := dir.Digest(path)
	if err != nil {
		return nil, "", err
	}
	s, err := pageserver.Open(path, k, log)
	if err != nil {
		return nil, "", err
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", at)
	if err != nil {
		return nil, "", errors.Join(err, s.Close())
	}
	if _, port, err = net.SplitHostPort(l.Addr().String()); err != nil {
		return nil, "", errors.Join(err, l.Close(), s.Close())
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, l) }()
	stop := func() error {
		cancel()
		return errors.Join(<-ended, s.Close())
	}
	return &served{state: digest, stop: stop}, port, nil
}
