//go:build integration

package integration

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/stasis-cr/stasis/integration/harness"
)

// app is a real program of this host in an image with the libraries it loads.
type app struct {
	name  string
	tools []string // programs of this host that the image needs
	files func(context.Context) ([]harness.File, error)
	cmd   []string
	// ask runs in the container and prints a line that must not change by a
	// checkpoint or a restore; tell, which may be nil, changes it before.
	tell, ask []string
}

// pythonApp holds random memory, threads and an event loop of its own; it
// answers over a unix socket.
const pythonApp = `
import hashlib, os, socket, threading, time
data = os.urandom(8 << 20)
ticks = [0, 0]
def tick(i):
    while True:
        ticks[i] += 1
        time.sleep(0.01)
for i in range(2):
    threading.Thread(target=tick, args=(i,), daemon=True).start()
s = socket.socket(socket.AF_UNIX)
s.bind("/tmp/s")
s.listen()
while True:
    c, _ = s.accept()
    before = list(ticks)
    time.sleep(0.2)
    alive = all(b > a for a, b in zip(before, ticks))
    c.sendall(f"{hashlib.sha256(data).hexdigest()} {alive}\n".encode())
    c.close()
`

const pythonAsk = `
import socket
s = socket.socket(socket.AF_UNIX)
s.connect("/tmp/s")
print(s.makefile().read(), end="")
`

var apps = []app{
	{
		name:  "redis",
		tools: []string{"redis-server", "redis-cli"},
		files: hostPrograms("redis-server", "redis-cli"),
		cmd:   []string{"/usr/bin/redis-server", "--port", "6379", "--unixsocket", "/tmp/s", "--save", ""},
		tell:  []string{"/usr/bin/redis-cli", "-s", "/tmp/s", "set", "key", "warm"},
		ask:   []string{"/usr/bin/redis-cli", "-s", "/tmp/s", "get", "key"},
	},
	{
		name:  "python",
		files: harness.Python,
		cmd:   []string{"/usr/bin/python3", "-c", pythonApp},
		ask:   []string{"/usr/bin/python3", "-c", pythonAsk},
	},
	{
		name:  "bash",
		tools: []string{"bash"},
		files: hostPrograms("bash"),
		cmd: []string{
			"/usr/bin/bash", "-c",
			`trap 'echo $x > /tmp/x' USR1; x=$RANDOM$RANDOM; while :; do read -t 1 <> <(:); done`,
		},
		ask: []string{"/bin/sh", "-c", `rm -f /tmp/x; kill -USR1 1; while ! grep . /tmp/x; do usleep 10000; done`},
	},
}

func hostPrograms(names ...string) func(context.Context) ([]harness.File, error) {
	return func(ctx context.Context) ([]harness.File, error) {
		var files []harness.File
		for _, n := range names {
			f, err := harness.Program(ctx, "/usr/bin/"+n)
			if err != nil {
				return nil, err
			}
			files = append(files, f...)
		}
		return files, nil
	}
}

// TestApps takes real programs through a checkpoint that leaves them running,
// and a restore.
func TestApps(t *testing.T) {
	for _, a := range apps {
		t.Run(a.name, func(t *testing.T) {
			harness.NeedTools(t, a.tools...)
			w := newWorld(t, harness.Config{})
			ref := w.importApp(a)
			line := append([]string{"run", "-d", "--null-io", "--runtime", harness.RuntimeName}, harness.RunArgs()...)
			w.ctr(append(line, ref, "c1")...)
			if a.tell != nil {
				w.answer("c1", a.tell)
			}
			want := w.answer("c1", a.ask)
			w.checkpoint(checkpointRef)
			if got := w.answer("c1", a.ask); got != want {
				t.Errorf("left running: %q, was %q", got, want)
			}
			w.remove("c1")
			w.restore("c1", checkpointRef)
			if got := w.answer("c1", a.ask); got != want {
				t.Errorf("restored: %q, was %q", got, want)
			}
			w.metrics("c1")
		})
	}
}

// importApp makes the program's image, with busybox for the tests' own needs.
func (w *world) importApp(a app) (ref string) {
	w.t.Helper()
	ctx := w.t.Context()
	files, err := a.files(ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	box, err := harness.Busybox(ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	im := harness.Image{
		Ref:   fmt.Sprintf("test.stasis.dev/%s:1", a.name),
		Files: append(append(files, box...), harness.Base()...),
		Cmd:   a.cmd,
		Env:   []string{"PATH=/usr/bin:/bin"},
	}
	if err := w.Import(ctx, im); err != nil {
		w.t.Fatal(err)
	}
	return im.Ref
}

// answer runs a command in the container until it succeeds.
func (w *world) answer(id string, cmd []string) (out string) {
	w.t.Helper()
	w.poll("answer of "+cmd[0], func() (bool, error) {
		var err error
		out, err = w.Exec(w.t.Context(), id, cmd...)
		return err == nil && strings.TrimSpace(out) != "", err
	})
	return out
}
