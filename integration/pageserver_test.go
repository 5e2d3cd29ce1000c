//go:build integration

package integration

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/fault"
	"github.com/stasis-cr/stasis/cr/pageserver/pagetest"
	"github.com/stasis-cr/stasis/integration/harness"
)

// pageBox is a container whose image is served, and comes to another directory.
type pageBox struct {
	*lazyBox
	served string // the image's directory
	ca     *pagetest.CA
	addr   string // of the server
	cmd    *exec.Cmd
	said   bytes.Buffer // by the server, on stderr
}

// newPages serves the image of a container that has ended.
func newPages(t *testing.T, l *lazyBox) *pageBox {
	t.Helper()
	b := &pageBox{lazyBox: l, served: l.image, ca: pagetest.New(t), addr: "127.0.0.1:0"}
	l.image = filepath.Join(t.TempDir(), "fetched")
	t.Cleanup(func() { b.stop(unix.SIGKILL) })
	b.serve()
	return b
}

// serve starts a page server, at the address of the last one if there was one.
func (b *pageBox) serve() {
	b.Helper()
	k := b.ca.Keys(b.T, "server", time.Hour)
	b.cmd = exec.Command(b.Engine.Save, "page-server", "--listen", b.addr,
		"--cert", k.Cert, "--key", k.Key, "--ca", k.CA, b.served)
	b.cmd.Stderr = &b.said
	b.addr = listening(b.T, b.cmd)
}

// listening starts a server, and returns the address that it says.
func listening(t *testing.T, cmd *exec.Cmd) (addr string) {
	t.Helper()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	addr, ok := strings.CutPrefix(strings.TrimSpace(line), "listening on ")
	if err != nil || !ok {
		t.Fatalf("the server says %q: %v", line, err)
	}
	return addr
}

// stop ends the page server and says how it ended.
func (b *pageBox) stop(s unix.Signal) error {
	b.Helper()
	if b.cmd == nil {
		return nil
	}
	err := errors.Join(b.cmd.Process.Signal(s), b.cmd.Wait())
	b.cmd = nil
	return err
}

// flags are those of a restore from the server.
func (b *pageBox) flags(more ...string) []string {
	b.Helper()
	k := b.ca.Keys(b.T, "client", time.Hour)
	return append([]string{"--page-server", b.addr, "--tls-cert", k.Cert, "--tls-key", k.Key, "--tls-ca", k.CA}, more...)
}

// ends lets the program check itself.
func (b *pageBox) ends() {
	b.Helper()
	if err := b.Go(b.ctx); err != nil {
		b.Errorf("%v\n%s", err, b.log())
	}
	b.filled()
}

// awaitWait waits until the program waits for memory.
func (b *pageBox) awaitWait() {
	b.Helper()
	err := harness.Poll(b.ctx, 20*time.Second, "wait of the program", func() (bool, error) {
		if r := b.result(); r != "" {
			b.Fatalf("the program came to an end: %s", r)
		}
		return b.waits(), nil
	})
	if err != nil {
		b.Fatalf("%v\n%s", err, b.log())
	}
}

// TestPageServer restores each program lazily from a server: only state and
// archives come before, and what it needs comes when it needs it.
func TestPageServer(t *testing.T) {
	e, progs := lazyEngine(t)
	for i, name := range []string{"touch", "fork", "storm"} {
		t.Run(name, func(t *testing.T) {
			b := newPages(t, newLazy(t, e, progs, uint32(i%2*1000), "lazy-"+name))
			b.restore(b.flags()...)
			b.ends()
			if b.counted("faults") == 0 {
				t.Errorf("no faults:\n%s", b.log())
			}
			if exists(filepath.Join(b.image, "pages.img")) {
				t.Error("the page store was fetched")
			}
			if err := b.stop(unix.SIGTERM); err != nil || b.said.Len() > 0 {
				t.Errorf("the server: %v: %s", err, b.said.String())
			}
		})
	}
}

// TestPageServerRestart kills the server while the program runs: the program
// waits, and goes on when there is one again.
func TestPageServerRestart(t *testing.T) {
	e, progs := lazyEngine(t)
	b := newPages(t, newLazy(t, e, progs, 1000, "lazy-touch", "512"))
	b.restore(b.flags()...)
	if err := b.stop(unix.SIGKILL); err == nil {
		t.Error("the server was not killed")
	}
	b.awaitWait()
	if len(b.records()) == 0 {
		t.Fatal("the container is not lazy")
	}
	b.serve()
	b.ends()
}

// TestPageServerEnd removes a container that waits for a server: whoever would fill
// its memory leaves at once.
func TestPageServerEnd(t *testing.T) {
	e, progs := lazyEngine(t)
	b := newPages(t, newLazy(t, e, progs, 1000, "lazy-touch", "512"))
	b.restore(b.flags("--page-server-timeout", "1h")...)
	if err := b.stop(unix.SIGKILL); err == nil {
		t.Error("the server was not killed")
	}
	b.awaitWait()
	if err := b.Remove(b.ctx); err != nil {
		t.Fatal(err)
	}
	b.filled()
}

// TestPageServerGivenUp: a container whose memory can't be had any more is killed,
// and does not read zeros.
func TestPageServerGivenUp(t *testing.T) {
	e, progs := lazyEngine(t)
	b := newPages(t, newLazy(t, e, progs, 1000, "lazy-touch", "512"))
	b.restore(b.flags("--page-server-timeout", "1s")...)
	if err := b.stop(unix.SIGKILL); err == nil {
		t.Error("the server was not killed")
	}
	b.killed("given up after")
}

// TestPageServerOther: a server that comes back with another checkpoint is none.
func TestPageServerOther(t *testing.T) {
	e, progs := lazyEngine(t)
	other := newLazy(t, e, progs, 1000, "lazy-touch")
	b := newPages(t, newLazy(t, e, progs, 1000, "lazy-touch", "512"))
	b.restore(b.flags()...)
	if err := b.stop(unix.SIGKILL); err == nil {
		t.Error("the server was not killed")
	}
	b.awaitWait()
	b.served = other.image
	b.serve()
	b.killed("another checkpoint")
}

// TestPageServerChunk: a chunk that comes damaged ends the container.
func TestPageServerChunk(t *testing.T) {
	e, progs := lazyEngine(t)
	b := newPages(t, newLazy(t, e, progs, 1000, "lazy-touch"))
	spoilPages(t, filepath.Join(b.served, "pages.img"))
	b.restore(b.flags()...)
	b.killed("checksum")
}

// spoilPages changes a byte in the middle of a file.
func spoilPages(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, st.Size()/2); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b, st.Size()/2); err != nil {
		t.Fatal(err)
	}
}

// TestPageServerChain serves a checkpoint that builds upon another: a restore
// needs nothing else, be it lazy or not.
func TestPageServerChain(t *testing.T) {
	e, progs := lazyEngine(t)
	l := newLazy(t, e, progs, 1000, "lazy-touch")
	if err := os.Remove(l.Path("ctl", "go")); err != nil {
		t.Fatal(err)
	}
	l.restore()
	l.filled()
	chain := t.TempDir()
	if err := l.Checkpoint(l.ctx, filepath.Join(chain, "0"), "--pre-dump"); err != nil {
		t.Fatal(err)
	}
	if err := l.Checkpoint(l.ctx, filepath.Join(chain, "1"), "--parent-path", "../0"); err != nil {
		t.Fatal(err)
	}
	l.wait()
	l.image = filepath.Join(chain, "1")
	b := newPages(t, l)
	b.restore(b.flags()...)
	b.ends()
	if err := errors.Join(b.Remove(b.ctx), os.Remove(b.Path("ctl", "result"))); err != nil {
		t.Fatal(err)
	}
	if err := b.Restore(b.ctx, b.image, b.flags()...); err != nil { // where the state is already
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(b.image, ".stasis-earlier-1")); err != nil {
		t.Error(err)
	}
	b.ends()
}

// pagePoints are the steps of a restore that fetches what it restores.
func pagePoints() []string { return []string{"page-fetch"} }

// TestFaultPages kills the engine while it fetches, and fails it there: nothing of
// the container is left, the next restore goes on with what has come, and the
// container runs.
func TestFaultPages(t *testing.T) {
	e, progs := lazyEngine(t)
	b := newPages(t, newLazy(t, e, progs, 1000, "lazy-touch"))
	pages := filepath.Join(b.image, "pages.img")
	for nth := 1; !exists(pages); nth++ {
		how := fmt.Sprintf("%s@%d", []string{"kill", "error"}[nth%2], nth)
		b.Engine.Env = []string{fault.Env + "=" + pagePoints()[0] + "=" + how}
		if err := b.Restore(b.ctx, b.image, b.flags()...); err == nil {
			t.Fatalf("%s: no error", how)
		}
		if left, err := filepath.Glob(filepath.Join(filepath.Dir(b.Path()), "state", "*")); err != nil || len(left) > 0 {
			t.Errorf("%s: left: %v, %v", how, left, err)
		}
		if exists(filepath.Join(b.image, "state.img")) {
			t.Errorf("%s: a checkpoint that is not whole has its name", how)
		}
	}
	// The pages are there: they are not asked for again.
	spoilPages(t, filepath.Join(b.served, "pages.img"))
	b.Engine.Env = nil
	if err := b.Restore(b.ctx, b.image, b.flags()...); err != nil {
		t.Fatal(err)
	}
	b.ends()
}

// TestFaultPagesLazy kills servers of lazy pages, whose successors connect anew.
func TestFaultPagesLazy(t *testing.T) {
	e, progs := lazyEngine(t)
	for _, point := range []string{"lazy-fault=kill@2", "lazy-copied=kill@100"} {
		t.Run(point, func(t *testing.T) {
			b := newPages(t, newLazy(t, e, progs, 1000, "lazy-storm"))
			b.Engine.Env = []string{fmt.Sprintf("%s=%s", fault.Env, point)}
			b.restore(b.flags()...)
			b.ends()
			if !strings.Contains(b.log(), "another one goes on") {
				t.Errorf("no server died:\n%s", b.log())
			}
		})
	}
}
