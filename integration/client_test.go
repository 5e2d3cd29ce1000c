//go:build integration

package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/api/types/runc/options"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/integration/harness"
)

// TestClient goes through containerd's Go API for what ctr has no flags for:
// the shim as runtime path under runc's name, an image directory that is never
// packed, and new limits after a restore.
func TestClient(t *testing.T) {
	w := newWorld(t, harness.Config{})
	ctx := namespaces.WithNamespace(t.Context(), w.Namespace)
	client, err := containerd.New(w.Address)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	c := w.clientContainer(ctx, client)
	path := containerd.WithRuntimePath(w.bins.Shim)
	dir := filepath.Join(w.dir, "image")

	task := startTask(ctx, t, c, path)
	n := w.waitCount("c1", 5)
	ended, err := task.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := task.Checkpoint(ctx, containerd.WithCheckpointImagePath(dir), exits); err != nil {
		t.Fatal(err)
	}
	if s := <-ended; s.ExitCode() != 137 {
		t.Errorf("exit status %d after a checkpoint that ends the task", s.ExitCode())
	}
	if _, err := task.Delete(ctx); err != nil {
		t.Fatal(err)
	}

	task = startTask(ctx, t, c, path, containerd.WithRestoreImagePath(dir))
	w.waitCount("c1", n+5)
	w.updates(ctx, task)
	checkImageDir(t, dir) // is the caller's, and stays
	if err := task.Kill(ctx, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	w.waitStatus("c1", "STOPPED")
}

// exits asks for a checkpoint that ends the task.
func exits(r *containerd.CheckpointTaskInfo) error {
	opts, ok := r.Options.(*options.CheckpointOptions)
	if !ok {
		return fmt.Errorf("checkpoint options are %T", r.Options)
	}
	opts.Exit = true
	return nil
}

func (w *world) clientContainer(ctx context.Context, client *containerd.Client) containerd.Container {
	w.t.Helper()
	image, err := client.GetImage(ctx, busyboxRef)
	if err != nil {
		w.t.Fatal(err)
	}
	spec := []oci.SpecOpts{oci.WithImageConfig(image)}
	c, err := client.NewContainer(ctx, "c1",
		containerd.WithNewSnapshot("c1", image),
		containerd.WithNewSpec(spec...),
		containerd.WithRuntime(harness.RuncName, nil))
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

func startTask(ctx context.Context, t *testing.T, c containerd.Container,
	opts ...containerd.NewTaskOpts,
) containerd.Task {
	t.Helper()
	task, err := c.NewTask(ctx, cio.NullIO, opts...)
	if err != nil {
		t.Fatal(err)
	}
	if err := task.Start(ctx); err != nil {
		t.Fatal(err)
	}
	return task
}

// updates gives the task another limit of memory, and looks for it.
func (w *world) updates(ctx context.Context, task containerd.Task) {
	w.t.Helper()
	if _, err := task.Metrics(ctx); err != nil {
		w.t.Error(err)
	}
	if harness.IsCgroup2() {
		return // version 1 may hold the memory controller
	}
	limit := int64(64 << 20)
	r := &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}
	if err := task.Update(ctx, containerd.WithResources(r)); err != nil {
		w.t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join("/sys/fs/cgroup/memory", w.Namespace, "c1", "memory.limit_in_bytes"))
	if err != nil || strings.TrimSpace(string(b)) != "67108864" {
		w.t.Errorf("limit %q, %v", b, err)
	}
}
