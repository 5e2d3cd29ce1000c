package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
)

// Bounds in time of what does not end with the caller's context.
const (
	connectTime = 10 * time.Second // until a containerd answers
	cleanTime   = 30 * time.Second // to take back what was made
)

// Address is where a containerd listens and which of its namespaces is meant.
type Address struct {
	Socket    string // path of its gRPC socket
	Namespace string
}

// daemon is a containerd that answers.
type daemon struct {
	client *client.Client
	addr   Address
}

// connect connects to a containerd. The caller closes its client.
func connect(ctx context.Context, a Address) (*daemon, error) {
	if err := identifiers.Validate(a.Namespace); err != nil {
		return nil, fmt.Errorf("containerd namespace %q: %w", a.Namespace, err)
	}
	c, err := client.New(a.Socket, client.WithDefaultNamespace(a.Namespace), client.WithTimeout(connectTime))
	if err != nil {
		return nil, fmt.Errorf("containerd at %s: %w", a.Socket, err)
	}
	ctx, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	if _, err := c.Version(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("containerd at %s does not answer: %w", a.Socket, err), c.Close())
	}
	return &daemon{client: c, addr: a}, nil
}

// named gives a context the namespace.
func (d *daemon) named(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, d.addr.Namespace)
}

// cleaning is a context for what has to be done though the caller's may be over.
func (d *daemon) cleaning(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(d.named(context.WithoutCancel(ctx)), cleanTime)
}

// leased keeps what f makes from being collected before something refers to it.
func (d *daemon) leased(ctx context.Context, f func(context.Context) error) (err error) {
	leased, done, err := d.client.WithLease(ctx)
	if err != nil {
		return fmt.Errorf("containerd's lease: %w", err)
	}
	defer func() {
		ctx, cancel := d.cleaning(ctx)
		defer cancel()
		if e := done(ctx); e != nil && !errdefs.IsNotFound(e) {
			err = errors.Join(err, fmt.Errorf("containerd's lease: %w", e))
		}
	}()
	return f(leased)
}

// remove ends a container's task, and removes container and snapshot. That some
// or all of it is gone is no error.
func (d *daemon) remove(ctx context.Context, id string) error {
	c, err := d.client.LoadContainer(ctx, id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("container %s: %w", id, err)
	}
	if err := d.endTask(ctx, c); err != nil {
		return err
	}
	if err := c.Delete(ctx, client.WithSnapshotCleanup); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove container %s: %w", id, err)
	}
	return nil
}

// endTask kills a container's task, waits for its end and deletes it. Who died while
// it did that may have left a shim that has no task any more: containerd asks it and
// says that there is none, but keeps shim and name until it is told to delete it.
func (d *daemon) endTask(ctx context.Context, c client.Container) error {
	task, err := c.Task(ctx, nil)
	if err == nil {
		_, err = task.Delete(ctx, client.WithProcessKill)
	}
	if errdefs.IsNotFound(err) {
		_, err = d.client.TaskService().Delete(ctx, &tasks.DeleteTaskRequest{ContainerID: c.ID()})
		err = errgrpc.ToNative(err)
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("end the task of container %s: %w", c.ID(), err)
	}
	return nil
}

// removeSnapshot removes a snapshot that no container refers to.
func (d *daemon) removeSnapshot(ctx context.Context, snapshotter, key string) error {
	err := d.client.SnapshotService(snapshotter).Remove(ctx, key)
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove snapshot %s of %s: %w", key, snapshotter, err)
	}
	return nil
}
