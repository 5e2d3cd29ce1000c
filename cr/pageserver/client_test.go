package pageserver_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stasis-cr/stasis/cr/blob/dir/dirtest"
	"github.com/stasis-cr/stasis/cr/pageserver"
	"github.com/stasis-cr/stasis/cr/pageserver/pagetest"
)

// cutter passes bytes on between client and server until it has passed some
// number of them to the client, and then cuts.
type cutter struct {
	addr  string
	limit atomic.Int64 // of the next connection; negative: none
	cuts  atomic.Int64
}

func newCutter(t *testing.T, to string) *cutter {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	k := &cutter{addr: l.Addr().String()}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() { k.pass(c, to) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		running.Wait()
	})
	return k
}

func (k *cutter) pass(c net.Conn, to string) {
	defer c.Close()
	s, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer s.Close()
	go func() {
		_, _ = io.Copy(s, c)
		_ = s.Close()
	}()
	if n := k.limit.Load(); n >= 0 {
		if got, _ := io.CopyN(c, s, n); got == n {
			k.cuts.Add(1)
		}
		return
	}
	_, _ = io.Copy(c, s)
}

// TestCut: the connection breaks again and again, later each time, so that each
// message is cut at some time; what has come is not lost, and in the end all is
// there. Another client takes up what the last one left.
func TestCut(t *testing.T) {
	s := serve(t)
	k := newCutter(t, s.addr)
	r := s.remote(t)
	r.Addr = k.addr
	to := filepath.Join(t.TempDir(), "d")
	short := r
	short.Patience = 19 * time.Millisecond // less than the first wait: one attempt
	err := errors.New("not tried")
	for err != nil {
		limit := 61 * k.cuts.Load()
		if limit > 1<<17 {
			t.Fatalf("no end: %v", err)
		}
		k.limit.Store(limit)
		err = client(t, short).Fetch(t.Context(), to, pageserver.AllPages)
		if err != nil && !strings.Contains(err.Error(), "given up after") {
			t.Fatal(err)
		}
	}
	if k.cuts.Load() < 20 {
		t.Errorf("%d cuts", k.cuts.Load())
	}
	sameFiles(t, s.dir, to, "state.img", dirtest.Tmpfs, dirtest.Pages)
}

// TestResume: half of a file is not fetched again, a whole one not at all.
func TestResume(t *testing.T) {
	s := serve(t)
	to := filepath.Join(t.TempDir(), "d")
	c := client(t, s.remote(t))
	if err := c.Fetch(t.Context(), to, pageserver.AllPages); err != nil {
		t.Fatal(err)
	}
	// A server that has lost them can't be asked for them again.
	for _, n := range []string{dirtest.Pages, dirtest.Tmpfs} {
		if err := os.Truncate(filepath.Join(s.dir, n), 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := client(t, s.remote(t)).Fetch(t.Context(), to, pageserver.AllPages); err != nil {
		t.Errorf("all is there: %v", err)
	}
	half := filepath.Join(to, dirtest.Tmpfs)
	if err := os.Truncate(half, 8); err != nil {
		t.Fatal(err)
	}
	err := client(t, s.remote(t)).Fetch(t.Context(), to, pageserver.AllPages)
	if err == nil || !strings.Contains(err.Error(), "EOF") {
		t.Errorf("a server that can't read says %v", err)
	}
}

// TestRestart: reads wait for a server that is started again, and go on; one that
// has another checkpoint is none.
func TestRestart(t *testing.T) {
	ca, path, log := pagetest.New(t), filepath.Join(t.TempDir(), "image"), &lockedBuffer{}
	dirtest.Write(t, path)
	keys := ca.Keys(t, "server", time.Hour)
	addr, stop := run(t, path, "127.0.0.1:0", keys, log)
	r := pageserver.Remote{Addr: addr, Keys: ca.Keys(t, "client", time.Hour), Patience: time.Minute}
	c := client(t, r)
	store := c.Store(t.Context(), 0)
	b := make([]byte, 4096)
	if _, err := store.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	stop()
	got := make(chan error)
	go func() {
		_, err := store.ReadAt(b, 4096)
		got <- err
	}()
	select {
	case err := <-got:
		t.Fatalf("read without a server: %v", err)
	default:
	}
	_, stop = run(t, path, addr, keys, log)
	if err := <-got; err != nil || b[0] != 0xa5 {
		t.Errorf("%v, %x", err, b[0])
	}
	stop()
	other := filepath.Join(t.TempDir(), "other")
	dirtest.WriteOther(t, other)
	_, stop = run(t, other, addr, keys, log)
	defer stop()
	if _, err := store.ReadAt(b, 0); err == nil || !strings.Contains(err.Error(), "another checkpoint") {
		t.Errorf("a server of another checkpoint: %v", err)
	}
}

// TestCancel: a read ends with its context.
func TestCancel(t *testing.T) {
	s := serve(t)
	ctx, cancel := context.WithCancel(t.Context())
	r := s.remote(t)
	r.Addr, r.Patience = "127.0.0.1:1", time.Hour // nobody is there
	got := make(chan error)
	go func() {
		_, err := client(t, r).Store(ctx, 0).ReadAt(make([]byte, 1), 0)
		got <- err
	}()
	cancel()
	if err := <-got; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}
