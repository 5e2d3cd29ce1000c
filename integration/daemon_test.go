//go:build integration

package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/api/runtime/task/v3"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/ttrpc"

	"github.com/stasis-cr/stasis/integration/harness"
	"github.com/stasis-cr/stasis/shim/daemon"
)

// TestDaemon takes a container from one containerd to another, the way a live
// migration does, but for the checkpoint, which ctr makes.
func TestDaemon(t *testing.T) {
	for _, snapshotter := range []string{"overlayfs", "native"} {
		t.Run(snapshotter, func(t *testing.T) {
			m := newMove(t, snapshotter)
			m.accept(true)
			m.carry("image", m.src.WriteImage, m.dst.ReadImage)
			if err := m.dst.Create(t.Context()); err != nil {
				t.Fatal(err)
			}
			m.carry("files", m.src.WriteRootfs, m.dst.ReadRootfs)
			m.changes()
			n := m.a.waitCount("c1", 5)
			image := filepath.Join(m.a.dir, "image")
			m.a.ctr("tasks", "checkpoint", "--exit", "--image-path", image, "c1")
			m.a.waitStatus("c1", "STOPPED")
			m.carry("changed files", m.src.WriteRootfs, m.dst.ReadRootfs)
			m.compare(snapshotter)
			m.goesOn(image, n)
			m.removed()
		})
	}
}

// move is a container in one world that is to go to another.
type move struct {
	t    *testing.T
	a, b *world
	src  *daemon.Source
	dst  *daemon.Target
	logs string
}

func newMove(t *testing.T, snapshotter string) *move {
	t.Helper()
	m := &move{t: t, a: newWorld(t, harness.Config{}), b: newWorld(t, harness.Config{})}
	m.a.run(harness.RuntimeName, []string{"--snapshotter", snapshotter, "--label", "app=counter"}, "c1")
	m.b.ctr("images", "rm", "--sync", busyboxRef)
	m.logs = filepath.Join(m.b.dir, "logs")
	if err := os.Mkdir(m.logs, 0o700); err != nil {
		t.Fatal(err)
	}
	var err error
	m.src, err = daemon.OpenSource(t.Context(), daemon.Address{Socket: m.a.Address, Namespace: m.a.Namespace}, "c1")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closes(t, m.src) })
	m.dst = m.target("m1")
	return m
}

// target is another connection to the second world.
func (m *move) target(mark string) *daemon.Target {
	m.t.Helper()
	dst, err := daemon.OpenTarget(m.t.Context(), daemon.TargetOptions{
		Address: daemon.Address{Socket: m.b.Address, Namespace: m.b.Namespace},
		LogDir:  m.logs,
		Mark:    mark,
	})
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { closes(m.t, dst) })
	return dst
}

func closes(t *testing.T, c io.Closer) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

func (m *move) describe() []byte {
	m.t.Helper()
	b, err := m.src.Describe(m.t.Context())
	if err != nil {
		m.t.Fatal(err)
	}
	return b
}

func (m *move) accept(needImage bool) {
	m.t.Helper()
	need, err := m.dst.Accept(m.t.Context(), m.describe())
	if err != nil || need != needImage {
		m.t.Fatalf("accept: needs the image %t, %v; want %t", need, err, needImage)
	}
}

// carry has one side read what the other writes.
func (m *move) carry(what string, write func(context.Context, io.Writer) error, read func(context.Context, io.Reader) error) {
	m.t.Helper()
	r, w := io.Pipe()
	wrote := make(chan error, 1)
	go func() {
		err := write(m.t.Context(), w)
		wrote <- errors.Join(err, w.CloseWithError(err))
	}()
	err := read(m.t.Context(), r)
	if err = errors.Join(err, r.CloseWithError(err), <-wrote); err != nil {
		m.t.Fatalf("%s: %v", what, err)
	}
}

// changes are some that a later layer has to tell.
func (m *move) changes() {
	m.t.Helper()
	m.a.exec("c1", "/bin/sh", "-c", "mkdir -p /data/sub && echo new > /data/sub/file && ln /data/sub/file /data/link && "+
		"rm /etc/passwd && rm -r /var; mkdir /var && echo x > /var/x && mv /etc/group /etc/moved; echo done")
}

// compare compares the files of both containers.
func (m *move) compare(snapshotter string) {
	m.t.Helper()
	from, to := m.a.files(snapshotter), m.b.files(snapshotter)
	if from["data/sub/file"] == "" || from["count"] == "" || from["etc/passwd"] != "" {
		m.t.Errorf("the container has not changed what it was to: %q", from)
	}
	for _, name := range slices.Sorted(maps.Keys(from)) {
		if from[name] != to[name] {
			m.t.Errorf("%s: %s, there %s", name, from[name], to[name])
		}
	}
	for name := range to {
		if from[name] == "" {
			m.t.Errorf("%s is only there", name)
		}
	}
}

// files lists the files of a container that doesn't run.
func (w *world) files(snapshotter string) map[string]string {
	w.t.Helper()
	client, err := containerd.New(w.Address)
	if err != nil {
		w.t.Fatal(err)
	}
	defer client.Close()
	ctx := namespaces.WithNamespace(w.t.Context(), w.Namespace)
	mounts, err := client.SnapshotService(snapshotter).Mounts(ctx, "c1")
	if err != nil {
		w.t.Fatal(err)
	}
	all := map[string]string{}
	err = mount.WithReadonlyTempMount(ctx, mounts, func(root string) error {
		return filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
			if err != nil || name == root {
				return err
			}
			line, err := line(name, d)
			all[name[len(root)+1:]] = line
			return err
		})
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return all
}

func line(name string, d fs.DirEntry) (string, error) {
	info, err := d.Info()
	if err != nil {
		return "", err
	}
	text := fmt.Sprint(info.Mode(), info.ModTime().UnixNano())
	switch {
	case info.Mode().IsRegular():
		b, err := os.ReadFile(name)
		return fmt.Sprintf("%s %x", text, b), err
	case info.Mode()&fs.ModeSymlink != 0:
		link, err := os.Readlink(name)
		return text + " " + link, err
	default:
		return text, nil
	}
}

// goesOn restores the container and sees it count on.
func (m *move) goesOn(image string, n int) {
	m.t.Helper()
	ctx := m.t.Context()
	pid, err := m.dst.Start(ctx, image)
	if err != nil {
		m.t.Fatal(err)
	}
	m.b.waitCount("c1", n+5)
	if got, err := m.dst.Running(ctx); got != pid || pid == 0 || err != nil {
		m.t.Errorf("running as %d, %v; started as %d", got, err, pid)
	}
	root, id := m.dst.Engine()
	if _, err := os.Stat(filepath.Join(root, id)); err != nil {
		m.t.Errorf("the runtime's state: %v", err)
	}
	if out := m.b.ctr("containers", "info", "c1"); !strings.Contains(out, `"app": "counter"`) ||
		!strings.Contains(out, `"cgroupsPath": "/`+m.b.Namespace+`/c1"`) {
		m.t.Errorf("the container is %s", out)
	}
	if st, err := os.Stat(filepath.Join(m.logs, "c1.log")); err != nil || st.Mode() != 0o600 {
		m.t.Errorf("log: %v, %v", st, err)
	}
	if _, err := m.target("m2").Accept(ctx, m.describe()); err == nil || !strings.Contains(err.Error(), "c1") {
		m.t.Errorf("a second container of the id: %v", err)
	}
}

// removed removes both containers, the second as a process would that has not
// made it.
func (m *move) removed() {
	m.t.Helper()
	later, other := m.target("m1"), m.target("m2")
	other.Attach("c1")
	if err := errors.Join(later.Remove(m.t.Context()), other.Remove(m.t.Context())); err != nil {
		m.t.Error(err)
	}
	if pid, err := other.Running(m.t.Context()); pid != 0 || err != nil {
		m.t.Errorf("another's container runs as %d, %v", pid, err)
	}
	m.b.waitCount("c1", m.b.count("c1"))
	later.Attach("c1")
	wantRoot, _ := m.dst.Engine()
	if root, id := later.Engine(); root != wantRoot || id != "c1" {
		m.t.Errorf("attached to %s in %s, want %s", id, root, wantRoot)
	}
	m.b.ctr("tasks", "pause", "c1") // as the engine leaves one that may not go on
	for range 2 {                   // the second time it is gone
		if err := errors.Join(m.src.Remove(m.t.Context()), later.Remove(m.t.Context()), m.dst.Remove(m.t.Context())); err != nil {
			m.t.Error(err)
		}
	}
	if pid, err := later.Running(m.t.Context()); pid != 0 || err != nil {
		m.t.Errorf("runs as %d, %v after its removal", pid, err)
	}
	for _, w := range []*world{m.a, m.b} {
		for _, list := range [][]string{{"containers", "ls"}, {"tasks", "ls"}, {"snapshots", "ls"}, {"snapshots", "--snapshotter", "native", "ls"}, {"leases", "ls"}} {
			out := w.ctr(list...)
			if strings.Contains(out, "c1") || strings.Contains(out, "Active") || list[0] == "leases" && strings.Count(out, "\n") > 1 {
				m.t.Errorf("ctr %s of %s: %s", list, w.Namespace, out)
			}
		}
	}
}

// TestDaemonHalfRemoved: somebody has died in the middle of a removal, when the shim
// had deleted its task and containerd had not heard of it. Who removes the container
// then leaves nothing, and another one can have its name.
func TestDaemonHalfRemoved(t *testing.T) {
	w := newWorld(t, harness.Config{})
	for _, runtime := range []string{harness.RuntimeName, "io.containerd.runc.v2"} {
		w.run(runtime, nil, "c1")
		src, err := daemon.OpenSource(t.Context(), daemon.Address{Socket: w.Address, Namespace: w.Namespace}, "c1")
		if err != nil {
			t.Fatal(err)
		}
		w.ctr("tasks", "kill", "-s", "KILL", "c1")
		w.waitStatus("c1", "STOPPED")
		w.deleteInShim("c1")
		if err := errors.Join(src.Remove(t.Context()), src.Close()); err != nil {
			t.Errorf("%s: %v", runtime, err)
		}
		if out := w.ctr("tasks", "ls") + w.ctr("containers", "ls"); strings.Contains(out, "c1") {
			t.Errorf("%s: left: %s", runtime, out)
		}
	}
	w.run(harness.RuntimeName, nil, "c1")
	w.remove("c1")
}

// deleteInShim deletes a task that has ended behind containerd's back.
func (w *world) deleteInShim(id string) {
	w.t.Helper()
	path := filepath.Join(filepath.Dir(w.Address), "io.containerd.runtime.v2.task", w.Namespace, id, "bootstrap.json")
	b, err := os.ReadFile(path)
	if err != nil {
		w.t.Fatal(err)
	}
	var shim struct{ Address string }
	if err := json.Unmarshal(b, &shim); err != nil {
		w.t.Fatal(err)
	}
	c, err := net.Dial("unix", strings.TrimPrefix(shim.Address, "unix://"))
	if err != nil {
		w.t.Fatal(err)
	}
	defer c.Close()
	client := ttrpc.NewClient(c)
	defer client.Close()
	ctx := namespaces.WithNamespace(w.t.Context(), w.Namespace)
	if _, err := task.NewTTRPCTaskClient(client).Delete(ctx, &task.DeleteRequest{ID: id}); err != nil {
		w.t.Fatal(err)
	}
}

// TestDaemonRefuses has all that stands in the way told at once, and nothing made.
func TestDaemonRefuses(t *testing.T) {
	a, b := newWorld(t, harness.Config{}), newWorld(t, harness.Config{})
	ctx := t.Context()
	address := daemon.Address{Socket: a.Address, Namespace: a.Namespace}
	refusesSource := func(what string) {
		t.Helper()
		src, err := daemon.OpenSource(ctx, address, "c1")
		if err == nil {
			closes(t, src)
		}
		if err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%v, want %q", err, what)
		}
	}
	refusesSource("c1")
	dir := filepath.Join(a.dir, "data")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	a.run(harness.RuntimeName, []string{"--mount", "type=bind,src=" + dir + ",dst=/data,options=rbind"}, "c1")
	a.ctr("tasks", "pause", "c1")
	refusesSource("resume it first")
	a.ctr("tasks", "resume", "c1")
	src, err := daemon.OpenSource(ctx, address, "c1")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closes(t, src) })
	description, err := src.Describe(ctx)
	if err != nil {
		t.Fatal(err)
	}

	target := func(o daemon.TargetOptions) *daemon.Target {
		t.Helper()
		o.Address = daemon.Address{Socket: b.Address, Namespace: b.Namespace}
		dst, err := daemon.OpenTarget(ctx, o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { closes(t, dst) })
		return dst
	}
	good := target(daemon.TargetOptions{})
	if need, err := good.Accept(ctx, description); need || err != nil {
		t.Errorf("needs the image %t, %v", need, err)
	}
	b.ctr("images", "rm", "--sync", busyboxRef)
	if need, err := good.Accept(ctx, description); !need || err != nil {
		t.Errorf("needs the image %t, %v", need, err)
	}
	b.importOther(busyboxRef)
	b.run(harness.RuntimeName, nil, "c1")
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	bad := target(daemon.TargetOptions{Runtime: "io.containerd.none.v1", Snapshotter: "none"})
	_, err = bad.Accept(ctx, description)
	for _, want := range []string{"container c1 is there", busyboxRef, "runtime io.containerd.none.v1", "snapshotter none", dir} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not tell of %s", err, want)
		}
	}
	b.remove("c1")
	b.otherImage(good)
}

// importOther imports another image than all others are.
func (w *world) importOther(ref string) {
	w.t.Helper()
	files, err := harness.Busybox(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	im := harness.Image{Ref: ref, Files: append(files, harness.Base()...), Cmd: []string{"/bin/sh", "-c", counter}, User: "0"}
	if err := w.Import(w.t.Context(), im); err != nil {
		w.t.Fatal(err)
	}
}

// otherImage sends a target another image than the promised one.
func (w *world) otherImage(dst *daemon.Target) {
	w.t.Helper()
	name := filepath.Join(w.dir, "other.tar")
	w.ctr("images", "export", "--local", name, busyboxRef) // see harness.ExportArgs
	w.ctr("images", "rm", "--sync", busyboxRef)
	f, err := os.Open(name)
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	if err := dst.ReadImage(w.t.Context(), f); err == nil || !strings.Contains(err.Error(), "promised") {
		w.t.Errorf("another image: %v", err)
	}
	if err := dst.Create(w.t.Context()); err == nil {
		w.t.Error("a container of no image")
	}
	if out := w.ctr("images", "ls", "-q") + w.ctr("containers", "ls", "-q"); out != "" {
		w.t.Errorf("left behind: %q", out)
	}
}
