package pageserver

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/stasis-cr/stasis/cr/blob/dir"
	"golang.org/x/sys/unix"
)

// Bounds of what clients can have. Memory is one answer for each connection.
const (
	mostClients = 64
	helloTime   = 10 * time.Second // for the handshake and the greeting
	idleTime    = 2 * time.Minute  // for the next request
	answerTime  = 30 * time.Second // to take an answer
	lingerTime  = time.Second
	lingerBytes = 64 << 10
	acceptPause = 50 * time.Millisecond
)

// Server serves one checkpoint.
type Server struct {
	keys    Keys
	log     *slog.Logger
	welcome welcome
	objects map[kind][]object
}

// object is a file that can be read; f is nil if there is none.
type object struct {
	f    *os.File
	size uint64
}

// Open opens the checkpoint in path, and all files that it needs. The caller
// closes the server. A nil log discards.
func Open(path string, k Keys, log *slog.Logger) (_ *Server, err error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &Server{keys: k, log: log, objects: map[kind][]object{}}
	if _, err := k.Server(); err != nil {
		return nil, err
	}
	image, err := dir.Open(path)
	if err != nil {
		return nil, err
	}
	err = s.open(image)
	if err = errors.Join(err, image.Close()); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Server) open(image *dir.Dir) error {
	state, err := image.State()
	if err != nil {
		return err
	}
	s.objects[kindState] = []object{{f: state}}
	sum := sha256.New()
	n, err := io.Copy(sum, state)
	if err != nil {
		return err
	}
	s.objects[kindState][0].size = uint64(n)
	s.welcome = welcome{version: Version, size: uint64(n)}
	sum.Sum(s.welcome.digest[:0])
	for _, t := range image.Image().Namespaces.GetTmpfs() {
		f, err := image.Open(t.Archive)
		if err != nil {
			return err
		}
		s.objects[kindArchive] = append(s.objects[kindArchive], object{f, t.Size})
	}
	stores, err := image.Stores()
	if err != nil {
		return err
	}
	index := image.Image().Pages
	sizes := make([]uint64, len(stores))
	for _, o := range index.OwnFiles() {
		sizes[o.Store] = o.Size
	}
	for i, p := range index.GetParents() {
		sizes[i+1] = p.Size
	}
	for i, f := range stores {
		s.objects[kindStore] = append(s.objects[kindStore], object{f, sizes[i]})
	}
	return nil
}

// Close closes the files.
func (s *Server) Close() error {
	var all error
	for _, list := range s.objects {
		for _, o := range list {
			if o.f != nil {
				all = errors.Join(all, o.f.Close())
			}
		}
	}
	return all
}

// Serve answers whoever comes to l, which it closes, until ctx ends: then it
// returns nil, after the last client's connection is closed.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	defer context.AfterFunc(ctx, func() { _ = l.Close() })() //nolint:errcheck // nothing was written
	defer l.Close()                                          //nolint:errcheck // likewise
	var running sync.WaitGroup
	defer running.Wait()
	slots := make(chan struct{}, mostClients)
	for {
		c, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = c.Close() //nolint:errcheck // nothing was written
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("page server: %w", err)
		case err != nil: // no descriptor is free, say: that passes
			s.log.Warn("a client could not be taken", slog.Any("err", err))
			pause(ctx, acceptPause)
			continue
		}
		select {
		case slots <- struct{}{}:
			running.Go(func() {
				defer func() { <-slots }()
				s.serve(ctx, c)
			})
		default:
			s.log.Warn("too many clients", slog.String("from", c.RemoteAddr().String()))
			_ = c.Close() //nolint:errcheck // nothing was written
		}
	}
}

// serve is one connection from beginning to end.
func (s *Server) serve(ctx context.Context, c net.Conn) {
	defer c.Close()                                          //nolint:errcheck // the client has all or asks again
	defer context.AfterFunc(ctx, func() { _ = c.Close() })() //nolint:errcheck // likewise
	log := s.log.With(slog.String("from", c.RemoteAddr().String()))
	config, err := s.keys.Server()
	if err != nil {
		log.Error("nobody can be served", slog.Any("err", err))
		return
	}
	secure := tls.Server(c, config)
	err = secure.SetDeadline(time.Now().Add(helloTime))
	if err == nil {
		err = secure.HandshakeContext(ctx)
	}
	if err != nil {
		if ctx.Err() == nil {
			log.Warn("client refused", slog.Any("err", err))
		}
		linger(c)
		return
	}
	log.Debug("client", slog.String("name", secure.ConnectionState().PeerCertificates[0].Subject.String()))
	if err := s.talk(secure); err != nil && ctx.Err() == nil {
		log.Warn("client dropped", slog.Any("err", err))
	}
}

// linger reads what a client that is refused still sends: to close before would
// reset the connection, and the client would not read why.
func linger(c net.Conn) {
	if w, ok := c.(*net.TCPConn); ok && w.CloseWrite() == nil && c.SetDeadline(time.Now().Add(lingerTime)) == nil {
		_, _ = io.CopyN(io.Discard, c, lingerBytes) //nolint:errcheck // it is closed whatever comes
	}
}

// talk greets a client that is known, and answers it until it goes.
func (s *Server) talk(c net.Conn) error {
	if err := c.SetDeadline(time.Now().Add(helloTime)); err != nil {
		return err
	}
	if _, err := c.Write(s.welcome.encode()); err != nil {
		return err
	}
	b := make([]byte, helloSize)
	if _, err := io.ReadFull(c, b); err != nil {
		return gone(err)
	}
	if err := checkHello(b); err != nil {
		return err
	}
	out := make([]byte, 0, answerSize+mostRead)
	for {
		if err := c.SetReadDeadline(time.Now().Add(idleTime)); err != nil {
			return err
		}
		b := make([]byte, requestSize)
		if _, err := io.ReadFull(c, b); err != nil {
			return gone(err)
		}
		q, err := parseRequest(b)
		if err != nil {
			return err
		}
		if err := s.answer(c, q, out); err != nil {
			return err
		}
	}
}

// gone is nil for a client that just went.
func gone(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, os.ErrDeadlineExceeded) || hungUp(err) {
		return nil
	}
	return err
}

// hungUp reports that the client closed the connection before it read all of ours,
// as one does that gives up reading ahead when its memory is full: tcp(7) answers
// what it leaves unread by a reset.
func hungUp(err error) bool {
	return errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE)
}

// answer answers one request; out has room for any answer. An error ends the
// connection.
func (s *Server) answer(c net.Conn, q request, out []byte) error {
	if err := c.SetWriteDeadline(time.Now().Add(answerTime)); err != nil {
		return err
	}
	b := out[answerSize : answerSize+q.length]
	f, end := s.find(q)
	if end == nil {
		if _, err := f.ReadAt(b, int64(q.offset)); err != nil {
			s.log.Error("can't read what a client asked for", slog.String("what", q.String()), slog.Any("err", err))
			return refuse(c, statusFailed, q, err)
		}
		appendAnswer(out, statusData, len(b))
		if _, err := c.Write(out[:answerSize+len(b)]); err != nil && !hungUp(err) {
			return err
		}
		return nil // the next read ends it if nobody is there
	}
	return errors.Join(end, refuse(c, statusRefused, q, end))
}

// find looks up what is asked for; an error says that there is no such thing.
func (s *Server) find(q request) (*os.File, error) {
	list := s.objects[q.kind]
	if uint64(q.index) >= uint64(len(list)) {
		return nil, fmt.Errorf("%s: %w", q, errNotServed)
	}
	o := list[q.index]
	if o.f == nil || q.offset > o.size || uint64(q.length) > o.size-q.offset {
		return nil, fmt.Errorf("%s: %w", q, errNotServed)
	}
	return o.f, nil
}

func refuse(c net.Conn, st status, q request, why error) error {
	text := fmt.Sprintf("%s: %v", q, why)
	if st == statusRefused {
		text = why.Error()
	} else if e, ok := errors.AsType[*os.PathError](why); ok {
		text = fmt.Sprintf("%s: %v", q, e.Err) // a path is none of the client's business
	}
	text = text[:min(len(text), mostText)]
	_, err := c.Write(append(appendAnswer(nil, st, len(text)), text...))
	return err
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
