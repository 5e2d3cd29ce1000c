package pageserver_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stasis-cr/stasis/cr/blob/dir/dirtest"
	"github.com/stasis-cr/stasis/cr/pageserver"
	"github.com/stasis-cr/stasis/cr/pageserver/pagetest"
)

// served is a server of one checkpoint on a loopback address.
type served struct {
	addr string
	dir  string
	ca   *pagetest.CA
	log  *lockedBuffer
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// run serves path on addr until stop is called.
func run(t *testing.T, path, addr string, k pageserver.Keys, log io.Writer) (at string, stop func()) {
	t.Helper()
	s, err := pageserver.Open(path, k, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Serve(ctx, l) }()
	return l.Addr().String(), func() {
		cancel()
		if err := errors.Join(<-done, s.Close()); err != nil {
			t.Error(err)
		}
	}
}

func serve(t *testing.T) *served {
	t.Helper()
	s := &served{ca: pagetest.New(t), dir: filepath.Join(t.TempDir(), "image"), log: &lockedBuffer{}}
	dirtest.Write(t, s.dir)
	addr, stop := run(t, s.dir, "127.0.0.1:0", s.ca.Keys(t, "server", time.Hour), s.log)
	t.Cleanup(stop)
	s.addr = addr
	return s
}

func (s *served) remote(t *testing.T) pageserver.Remote {
	t.Helper()
	return pageserver.Remote{Addr: s.addr, Keys: s.ca.Keys(t, "client", time.Hour), Patience: 5 * time.Second}
}

func client(t *testing.T, r pageserver.Remote) *pageserver.Client {
	t.Helper()
	c := pageserver.NewClient(r)
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// sameFiles compares files of two directories.
func sameFiles(t *testing.T, a, b string, names ...string) {
	t.Helper()
	for _, n := range names {
		x, err := os.ReadFile(filepath.Join(a, n))
		y, e := os.ReadFile(filepath.Join(b, n))
		if err := errors.Join(err, e); err != nil {
			t.Error(err)
		} else if !bytes.Equal(x, y) {
			t.Errorf("%s is another", n)
		}
		if st, err := os.Stat(filepath.Join(b, n)); err == nil && st.Mode().Perm() != 0o600 {
			t.Errorf("%s has the mode %o", n, st.Mode().Perm())
		}
	}
}

func TestFetch(t *testing.T) {
	s := serve(t)
	for _, part := range []pageserver.Part{pageserver.NoPages, pageserver.OwnPages, pageserver.AllPages} {
		to := filepath.Join(t.TempDir(), "a", "b")
		if err := client(t, s.remote(t)).Fetch(t.Context(), to, part); err != nil {
			t.Fatal(err)
		}
		want := []string{"state.img", dirtest.Tmpfs}
		if part != pageserver.NoPages {
			want = append(want, dirtest.Pages, dirtest.More)
		}
		sameFiles(t, s.dir, to, want...)
		if got, err := os.ReadDir(to); err != nil || len(got) != len(want) {
			t.Errorf("%v, %v", got, err)
		}
		if st, err := os.Stat(to); err != nil || st.Mode().Perm() != 0o700 {
			t.Errorf("directory: %v, %v", st.Mode(), err)
		}
	}
}

// TestSix: an address of IP version 6 is one like any other.
func TestSix(t *testing.T) {
	l, err := net.Listen("tcp", "[::1]:0")
	switch {
	case err == nil:
	case os.Getenv("CI") == "true":
		t.Fatalf("::1 is missing: %v", err)
	default:
		t.Skipf("::1 is missing: %v", err)
	}
	_ = l.Close()
	s := serve(t)
	addr, stop := run(t, s.dir, "[::1]:0", s.ca.Keys(t, "server", time.Hour), s.log)
	defer stop()
	r := s.remote(t)
	r.Addr = addr
	to := filepath.Join(t.TempDir(), "d")
	if err := client(t, r).Fetch(t.Context(), to, pageserver.AllPages); err != nil {
		t.Fatal(err)
	}
	sameFiles(t, s.dir, to, dirtest.Pages, dirtest.More)
}

// TestFetchOther: a directory with another checkpoint is left as it is.
func TestFetchOther(t *testing.T) {
	s := serve(t)
	to := t.TempDir()
	if err := os.WriteFile(filepath.Join(to, "state.img"), []byte("another"), 0o600); err != nil {
		t.Fatal(err)
	}
	err := client(t, s.remote(t)).Fetch(t.Context(), to, pageserver.AllPages)
	if err == nil || !strings.Contains(err.Error(), "another checkpoint is there already") {
		t.Errorf("%v", err)
	}
	if b, err := os.ReadFile(filepath.Join(to, "state.img")); err != nil || string(b) != "another" {
		t.Errorf("%q, %v", b, err)
	}
}

// TestTrust: who does not show a certificate of the CA gets nothing, and both
// sides say why; nor does a client take what another server has.
func TestTrust(t *testing.T) {
	s := serve(t)
	other := pagetest.New(t)
	good := s.ca.Keys(t, "client", time.Hour)
	expired := s.ca.Keys(t, "expired", -time.Hour)
	stranger := other.Keys(t, "stranger", time.Hour)
	for _, tt := range []struct {
		name string
		keys pageserver.Keys
		want string
	}{
		{"expired", expired, "expired certificate"},
		{"other CA", pageserver.Keys{Cert: stranger.Cert, Key: stranger.Key, CA: good.CA}, "certificate"},
		{"server of another CA", pageserver.Keys{Cert: good.Cert, Key: good.Key, CA: stranger.CA}, "unknown authority"},
		{"no certificate", pageserver.Keys{Cert: "/nowhere", Key: good.Key, CA: good.CA}, "certificate /nowhere"},
		{"other key", pageserver.Keys{Cert: good.Cert, Key: stranger.Key, CA: good.CA}, "private key does not match"},
		{"no CA", pageserver.Keys{Cert: good.Cert, Key: good.Key, CA: good.Key}, "no certificate in it"},
	} {
		r := s.remote(t)
		r.Keys, r.Patience = tt.keys, time.Hour // it is not to be waited for
		err := client(t, r).Fetch(t.Context(), filepath.Join(t.TempDir(), "d"), pageserver.NoPages)
		said := fmt.Sprint(err)
		if !strings.Contains(said, tt.want) || !strings.Contains(said, s.addr) || strings.Contains(said, "\n") {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
	if log := s.log.String(); !strings.Contains(log, "client refused") || !strings.Contains(log, "expired") {
		t.Errorf("the server does not say whom it refused:\n%s", log)
	}
}

// TestHostName: a certificate for another host is none for this one.
func TestHostName(t *testing.T) {
	s := serve(t)
	_, port, err := net.SplitHostPort(s.addr)
	if err != nil {
		t.Fatal(err)
	}
	r := s.remote(t)
	r.Addr, r.Patience = net.JoinHostPort("localhost", port), time.Hour
	err = client(t, r).Fetch(t.Context(), filepath.Join(t.TempDir(), "d"), pageserver.NoPages)
	if err == nil || !strings.Contains(err.Error(), "match localhost") {
		t.Errorf("%v", err)
	}
}

// TestServerKeys: a server does not begin without keys.
func TestServerKeys(t *testing.T) {
	ca, path := pagetest.New(t), filepath.Join(t.TempDir(), "image")
	dirtest.Write(t, path)
	k := ca.Keys(t, "server", time.Hour)
	k.CA = "/nowhere"
	if _, err := pageserver.Open(path, k, nil); err == nil || !strings.Contains(err.Error(), "/nowhere") {
		t.Errorf("%v", err)
	}
	if _, err := pageserver.Open(t.TempDir(), ca.Keys(t, "server", time.Hour), nil); err == nil {
		t.Error("a directory without a checkpoint is served")
	}
}

// raw makes a connection with a certificate, and with which flags.
func (s *served) raw(t *testing.T, with func(*tls.Config)) (*tls.Conn, error) {
	t.Helper()
	k := s.ca.Keys(t, "hostile", time.Hour)
	cert, err := tls.LoadX509KeyPair(k.Cert, k.Key)
	if err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(k.CA)
	if err != nil {
		t.Fatal(err)
	}
	c := &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: x509.NewCertPool()}
	c.RootCAs.AppendCertsFromPEM(pem)
	with(c)
	conn, err := tls.Dial("tcp", s.addr, c)
	if err == nil {
		t.Cleanup(func() { _ = conn.Close() })
		err = conn.SetDeadline(time.Now().Add(30 * time.Second))
	}
	return conn, err
}

// TestPlain: no older TLS, no connection without a certificate, none without TLS.
func TestPlain(t *testing.T) {
	s := serve(t)
	if _, err := s.raw(t, func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }); err == nil {
		t.Error("TLS 1.2 is spoken")
	}
	c, err := s.raw(t, func(c *tls.Config) { c.Certificates = nil })
	if err == nil { // in TLS 1.3 the client learns it when it reads
		_, err = c.Read(make([]byte, 1))
	}
	if err == nil || !strings.Contains(err.Error(), "certificate required") {
		t.Errorf("without a certificate: %v", err)
	}
	plain, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	if _, err := plain.Write([]byte(strings.Repeat("\x89STSPSV\n", 8))); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(plain); err == nil && bytes.Contains(b, []byte("STSPSV")) {
		t.Errorf("the server speaks without TLS: %q", b)
	}
}

// TestHostile: requests that name what the image does not have, or that are no
// requests, end the connection and nothing else.
func TestHostile(t *testing.T) {
	s := serve(t)
	greeting := "\x89STSPSV\n\x01\x00\x00\x00\x00\x00\x00\x00"
	ask := func(kind byte, index uint32, offset uint64, length uint32) string {
		b := binary.LittleEndian.AppendUint32([]byte{kind, 0, 0, 0}, index)
		b = binary.LittleEndian.AppendUint64(b, offset)
		return string(binary.LittleEndian.AppendUint32(b, length))
	}
	for name, tt := range map[string]struct{ say, want string }{
		"no greeting":           {strings.Repeat("x", 16), ""},
		"other version":         {"\x89STSPSV\n\x02\x00\x00\x00\x00\x00\x00\x00", ""},
		"end of a store":        {greeting + ask('P', 0, 2*4096-1, 2), "no such bytes"},
		"end of a further file": {greeting + ask('P', 1, 4096-1, 2), "no such bytes"},
		"behind":                {greeting + ask('P', 0, 1<<63, 1), "no such bytes"},
		"wraps":                 {greeting + ask('P', 0, ^uint64(0), 1), "no such bytes"},
		"other store":           {greeting + ask('P', 2, 0, 1), "no such bytes"},
		"last store":            {greeting + ask('P', ^uint32(0), 0, 1), "no such bytes"},
		"other archive":         {greeting + ask('A', 1, 0, 1), "no such bytes"},
		"other state":           {greeting + ask('S', 1, 0, 1), "no such bytes"},
		"much":                  {greeting + ask('P', 0, 0, 1<<20+1), ""},
		"nothing":               {greeting + ask('P', 0, 0, 0), ""},
		"another kind":          {greeting + ask('F', 0, 0, 1), ""},
		"half a request":        {greeting + ask('P', 0, 0, 1)[:7], ""},
		"a name":                {greeting + "/etc/passwd\x00\x00\x00\x00\x00\x00\x00\x00\x00", ""},
		"a TLS message":         {greeting + "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + strings.Repeat("\x00", 9), ""},
		"good, then junk":       {greeting + ask('P', 0, 0, 1) + strings.Repeat("\xff", 20), "\xa5"},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := s.raw(t, func(*tls.Config) {})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.Write([]byte(tt.say)); err != nil {
				t.Fatal(err)
			}
			if err := c.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(c)
			if err != nil && !strings.Contains(err.Error(), "reset") {
				t.Fatal(err)
			}
			if len(b) < 56 && err == nil || len(b) > 56+8+256 {
				t.Fatalf("%d bytes", len(b))
			}
			if tt.want != "" && !strings.Contains(string(b), tt.want) {
				t.Errorf("the server says %q, want %q", b, tt.want)
			}
			if tt.want == "" && len(b) > 56 {
				t.Errorf("the server answers %q", b[56:])
			}
		})
	}
	if err := client(t, s.remote(t)).Fetch(t.Context(), filepath.Join(t.TempDir(), "d"), pageserver.AllPages); err != nil {
		t.Errorf("after them all: %v", err)
	}
}

// TestHangUp: a client that goes with an answer unread is no reason for a warning.
func TestHangUp(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "image")
	dirtest.Write(t, dir)
	s := &served{ca: pagetest.New(t), dir: dir, log: &lockedBuffer{}}
	addr, stop := run(t, dir, "127.0.0.1:0", s.ca.Keys(t, "server", time.Hour), s.log)
	s.addr = addr
	c, err := s.raw(t, func(*tls.Config) {})
	if err == nil {
		_, err = io.ReadFull(c, make([]byte, 56)) // what the server says first
	}
	if err != nil {
		t.Fatal(err)
	}
	tcp, ok := c.NetConn().(*net.TCPConn)
	if !ok {
		t.Fatalf("%T", c.NetConn())
	}
	if err := errors.Join(tcp.SetLinger(0), tcp.Close()); err != nil { // resets
		t.Fatal(err)
	}
	// The server waits for nobody but those it still serves.
	if err := client(t, s.remote(t)).Fetch(t.Context(), filepath.Join(t.TempDir(), "d"), pageserver.AllPages); err != nil {
		t.Error(err)
	}
	stop()
	if s.log.String() != "" {
		t.Errorf("the server warns: %s", s.log)
	}
}

// TestCrowd: clients beyond the bound are sent away, and those within are served.
func TestCrowd(t *testing.T) {
	s := serve(t)
	var crowd []net.Conn
	defer func() {
		for _, c := range crowd {
			_ = c.Close()
		}
	}()
	for range 64 {
		c, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		crowd = append(crowd, c)
	}
	c, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("one too many: %v", err)
	}
	for _, c := range crowd {
		_ = c.Close()
	}
	if err := client(t, s.remote(t)).Fetch(t.Context(), filepath.Join(t.TempDir(), "d"), pageserver.AllPages); err != nil {
		t.Errorf("after them all: %v", err)
	}
}
