//go:build integration

package integration

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/console"
	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/integration/harness"
)

const checkpointRef = "test.stasis.dev/counter:warm"

// checkpoint takes a checkpoint of c1 into an image, which leaves it running.
func (w *world) checkpoint(ref string) {
	w.t.Helper()
	w.ctr("containers", "checkpoint", "--image", "--task", "--rw", "c1", ref)
	w.waitStatus("c1", "RUNNING")
}

// restore makes the container of the image's checkpoint go on as id.
func (w *world) restore(id, ref string) {
	w.t.Helper()
	w.ctr("containers", "restore", "--rw", "--live", id, ref)
	w.waitStatus(id, "RUNNING")
	w.noTemp()
}

// noTemp checks that no checkpoint is left in containerd's temporary directory.
func (w *world) noTemp() {
	w.t.Helper()
	left, err := filepath.Glob(filepath.Join(w.Temp, "*"))
	if err != nil || len(left) > 0 {
		w.t.Errorf("left in containerd's temporary directory: %q, %v", left, err)
	}
}

// TestCtrContainersRestore is the first flow, in every way to name the
// shim: run, checkpoint into an image, delete, restore.
func TestCtrContainersRestore(t *testing.T) {
	for _, r := range runtimes {
		t.Run(r.name, func(t *testing.T) {
			w := newWorld(t, harness.Config{AsRunc: r.asRunc})
			w.run(r.arg(w.bins), nil, "c1")
			w.waitCount("c1", 5)
			w.checkpoint(checkpointRef)
			w.behaves("c1") // left running
			n := w.count("c1")
			w.remove("c1")

			w.restore("c2", checkpointRef)
			if got := w.count("c2"); got > n+50 {
				t.Errorf("count is %d, was %d", got, n)
			}
			w.behaves("c2")
			w.endsBy("c2", "KILL", 137)
		})
	}
}

// TestCtrRestoreTwice restores one image again and again, and checkpoints what
// was restored.
func TestCtrRestoreTwice(t *testing.T) {
	w := newWorld(t, harness.Config{})
	w.run(harness.RuntimeName, nil, "c1")
	w.waitCount("c1", 5)
	w.checkpoint(checkpointRef)
	w.remove("c1")
	for range 2 {
		w.restore("c1", checkpointRef)
		w.behaves("c1")
		w.remove("c1")
	}
	w.restore("c1", checkpointRef)
	n := w.waitCount("c1", w.count("c1"))
	w.checkpoint(checkpointRef + "-2")
	w.remove("c1")
	w.restore("c1", checkpointRef+"-2")
	if got := w.count("c1"); got < n {
		t.Errorf("count is %d, and was %d before the second checkpoint", got, n)
	}
	w.behaves("c1")
}

// TestCtrRuntimes checkpoints and restores with every OCI runtime of this host.
func TestCtrRuntimes(t *testing.T) {
	for _, path := range hostRuntimes(t) {
		t.Run(strings.ReplaceAll(path[1:], "/", "_"), func(t *testing.T) {
			w := newWorld(t, harness.Config{Runc: path})
			w.skipOldRuntime()
			w.run(harness.RuntimeName, nil, "c1")
			w.waitCount("c1", 5)
			w.checkpoint(checkpointRef)
			w.remove("c1")
			w.restore("c1", checkpointRef)
			w.behaves("c1")
			w.endsBy("c1", "KILL", 137)
		})
	}
}

// skipOldRuntime ends the test of a runtime that is older than the bundles which
// containerd writes.
func (w *world) skipOldRuntime() {
	w.t.Helper()
	line := append([]string{"run", "--rm", "--runtime", harness.RuntimeName}, harness.RunArgs()...)
	_, err := w.Ctr(w.t.Context(), append(line, busyboxRef, "c0", "/bin/true")...)
	if err == nil {
		return
	}
	if strings.Contains(err.Error(), "unknown version specified") {
		w.t.Skip(err)
	}
	w.t.Fatal(err)
}

// hostRuntimes lists the runtimes to test: runc of the tools, the distribution's,
// and crun where only the unified hierarchy is mounted, as it wants.
func hostRuntimes(t *testing.T) []string {
	t.Helper()
	harness.NeedTools(t, "runc")
	first, err := harness.Tool("runc")
	if err != nil {
		t.Fatal(err)
	}
	paths := []string{first}
	if p, err := exec.LookPath("runc"); err == nil && p != first {
		paths = append(paths, p)
	}
	if p, err := exec.LookPath("crun"); err == nil && harness.IsCgroup2() {
		paths = append(paths, p)
	}
	return paths
}

// TestCtrTasksCheckpoint checks containerd's other command, and that it leaves
// the container as --exit says.
func TestCtrTasksCheckpoint(t *testing.T) {
	w := newWorld(t, harness.Config{})
	w.run(harness.RuntimeName, nil, "c1")
	n := w.waitCount("c1", 5)
	name := strings.TrimSpace(w.ctr("tasks", "checkpoint", "c1"))
	if !strings.HasPrefix(name, "containerd.io/checkpoint/c1:") {
		t.Errorf("ctr tasks checkpoint: %q", name)
	}
	w.waitStatus("c1", "RUNNING")
	w.waitCount("c1", n)
	w.behaves("c1")

	w.ctr("images", "rm", name) // the next may get the same: it ends in seconds
	w.ctr("tasks", "checkpoint", "--exit", "c1")
	w.waitStatus("c1", "STOPPED")
	w.ctr("tasks", "delete", "c1")
	w.ctr("containers", "delete", "c1")
	w.noTemp()
}

// TestCtrImagePath writes the image to a directory of the caller's, which only
// containerd's own runtime name allows, and restores from it by annotation.
func TestCtrImagePath(t *testing.T) {
	w := newWorld(t, harness.Config{AsRunc: true})
	image, work := filepath.Join(w.dir, "image"), filepath.Join(w.dir, "work")
	w.runLogged(filepath.Join(w.dir, "log1"), nil, "c1")
	w.waitPrinted("c1", 5)
	w.ctr("tasks", "checkpoint", "--exit", "--image-path", image, "--work-path", work, "c1")
	w.waitStatus("c1", "STOPPED")
	w.ctr("tasks", "delete", "c1")
	w.ctr("containers", "delete", "c1")
	checkImageDir(t, image)
	if _, err := os.Stat(filepath.Join(work, "dump.log")); err != nil {
		t.Error(err)
	}

	log := filepath.Join(w.dir, "log2")
	w.runLogged(log, []string{"--annotation", "stasis.dev/restore-from=" + image}, "c2")
	w.waitStatus("c2", "RUNNING")
	w.goesOnPrinting(log)
	w.endsBy("c2", "KILL", 137)
	checkImageDir(t, image) // the caller's directory stays
}

// TestCtrTerminal checkpoints a shell on a terminal, and gives it a new one.
func TestCtrTerminal(t *testing.T) {
	w := newWorld(t, harness.Config{AsRunc: true})
	image := filepath.Join(w.dir, "image")
	w.runTTY(nil, "c1")
	n := w.waitPrinted("c1", 5)
	w.ctr("tasks", "checkpoint", "--exit", "--image-path", image, "c1")
	w.waitStatus("c1", "STOPPED")
	w.remove("c1")

	w.runTTY([]string{"--annotation", "stasis.dev/restore-from=" + image}, "c2")
	w.waitStatus("c2", "RUNNING")
	w.waitPrinted("c2", n)
	for _, fd := range []string{"0", "1", "2"} {
		if got := w.exec("c2", "readlink", "/proc/1/fd/"+fd); got != "/dev/pts/0\n" {
			t.Errorf("fd %s is %q", fd, got)
		}
	}
	w.endsBy("c2", "KILL", 137)
}

// runTTY runs stdoutCounter on a terminal whose output nobody reads. ctr wants
// to be on a terminal itself.
func (w *world) runTTY(flags []string, id string) {
	w.t.Helper()
	line := append([]string{"run", "-d", "-t", "--runtime", harness.RuncName}, flags...)
	line = append(append(line, harness.RunArgs()...), busyboxRef, id)
	master, name, err := console.NewPty()
	if err != nil {
		w.t.Fatal(err)
	}
	defer master.Close()
	slave, err := os.OpenFile(name, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	defer slave.Close()
	cmd := w.CtrCommand(append(line, "/bin/sh", "-c", stdoutCounter)...)
	var said strings.Builder
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, &said, &said
	if err := cmd.Run(); err != nil {
		w.t.Fatalf("ctr run -t: %v: %s", err, said.String())
	}
}

// stdoutCounter counts in memory and prints; a file has the last number, for
// those who can't see the output. It is on a tmpfs, which is in an image without
// the container's layer, too.
const stdoutCounter = `cd /dev/shm; i=0
while :; do i=$((i+1)); echo $i; echo $i > n.new; mv n.new n; usleep 20000; done`

// runLogged runs stdoutCounter with its output in a file.
func (w *world) runLogged(log string, flags []string, id string) {
	w.t.Helper()
	line := append([]string{"run", "-d", "--log-uri", "file://" + log, "--runtime", harness.RuncName}, flags...)
	line = append(append(line, harness.RunArgs()...), busyboxRef, id)
	w.ctr(append(line, "/bin/sh", "-c", stdoutCounter)...)
}

func (w *world) waitPrinted(id string, n int) (got int) {
	w.t.Helper()
	w.poll("number of "+id, func() (bool, error) {
		out, err := w.Exec(w.t.Context(), id, "cat", "/dev/shm/n")
		if err != nil {
			return false, err
		}
		got, err = strconv.Atoi(strings.TrimSpace(out))
		return got > n, err
	})
	return got
}

// goesOnPrinting checks that a log holds numbers, each one more than the last,
// and that they begin where the checkpoint was taken and not at one.
func (w *world) goesOnPrinting(log string) {
	w.t.Helper()
	w.poll("ten numbers in the log", func() (bool, error) {
		f, err := os.Open(log)
		if err != nil {
			return false, err
		}
		defer f.Close()
		first, last := 0, 0
		for s := bufio.NewScanner(f); s.Scan(); {
			n, err := strconv.Atoi(s.Text())
			switch {
			case err != nil:
				return false, err
			case first == 0:
				first = n
			case n != last+1:
				return false, fmt.Errorf("%d after %d", n, last)
			}
			last = n
		}
		if first == 1 {
			return false, fmt.Errorf("the log begins at 1")
		}
		return last-first >= 10, nil
	})
}

// checkImageDir checks what every neighbour needs of an image directory: plain
// files, right in it, dense.
func checkImageDir(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) == 0 {
		t.Fatalf("%s: %d entries, %v", dir, len(entries), err)
	}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			t.Errorf("%s is a %s", e.Name(), e.Type())
		}
	}
	for _, name := range []string{"descriptors.json", "inventory.img"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
}

// TestCtrExportImport moves a checkpoint to another containerd, which shares
// nothing with the first.
func TestCtrExportImport(t *testing.T) {
	a := newWorld(t, harness.Config{})
	a.run(harness.RuntimeName, nil, "c1")
	a.waitCount("c1", 5)
	a.checkpoint(checkpointRef)
	n := a.count("c1")
	a.remove("c1")
	file := filepath.Join(a.dir, "export.tar")
	a.ctr(append(harness.ExportArgs(), file, checkpointRef)...)

	b := newWorld(t, harness.Config{}) // has the base image already
	b.ctr(append(harness.ImportArgs(), file)...)
	b.restore("c1", checkpointRef)
	if got := b.count("c1"); got < 5 || got > n+50 {
		t.Errorf("count is %d, was %d", got, n)
	}
	b.behaves("c1")
	b.endsBy("c1", "KILL", 137)
}

// TestCtrRestoreFails gives containerd a checkpoint whose memory is damaged.
// The restore must fail and leave nothing behind.
func TestCtrRestoreFails(t *testing.T) {
	w := newWorld(t, harness.Config{AsRunc: true})
	image := filepath.Join(w.dir, "image")
	w.run(harness.RuncName, nil, "c1")
	w.waitCount("c1", 5)
	w.ctr("tasks", "checkpoint", "--exit", "--image-path", image, "c1")
	w.waitStatus("c1", "STOPPED")
	w.remove("c1")
	truncateAll(t, image)

	line := append([]string{
		"run", "-d", "--null-io", "--runtime", harness.RuncName,
		"--annotation", "stasis.dev/restore-from=" + image,
	}, harness.RunArgs()...)
	_, err := w.Ctr(t.Context(), append(line, busyboxRef, "c2")...)
	if err == nil {
		t.Fatal("a damaged image was restored")
	}
	said := err.Error()[strings.LastIndex(err.Error(), "ctr: "):] // after its warnings
	t.Log(said)
	if strings.Contains(strings.TrimSpace(said), "\n") {
		t.Errorf("the error is not one line: %v", err)
	}
	w.remove("c2") // containerd keeps a task that did not start
	w.poll("end of the shims", func() (bool, error) {
		pids, err := w.Shims()
		return len(pids) == 0, err
	})
	if left := w.Outside(); len(left) > 0 {
		t.Errorf("left by a failed restore: %q", left)
	}
}

func truncateAll(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(filepath.Join(dir, e.Name()), info.Size()/2); err != nil {
			t.Fatal(err)
		}
	}
}
