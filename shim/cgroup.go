package shim

import (
	"context"
	"fmt"
	"sync"

	"github.com/containerd/cgroups/v3"
	"github.com/containerd/cgroups/v3/cgroup1"
	"github.com/containerd/cgroups/v3/cgroup2"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/pkg/oom"
	oomv1 "github.com/containerd/containerd/v2/pkg/oom/v1"
	oomv2 "github.com/containerd/containerd/v2/pkg/oom/v2"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
)

// loadCgroup returns the cgroup of a process as containerd's libraries take it:
// a [cgroup1.Cgroup] or a [*cgroup2.Manager].
func loadCgroup(pid int) (any, error) {
	if cgroups.Mode() != cgroups.Unified {
		return cgroup1.Load(cgroup1.PidPath(pid))
	}
	path, err := cgroup2.PidGroupPath(pid)
	if err != nil {
		return nil, err
	}
	return cgroup2.Load(path)
}

// prepareCgroup does for a restored container what containerd's service does
// for a new one: on the unified hierarchy its controllers are switched on down
// to the group, or there is nothing to measure.
func prepareCgroup(cg any) error {
	m, ok := cg.(*cgroup2.Manager)
	if !ok {
		return nil
	}
	all, err := m.RootControllers()
	if err != nil {
		return err
	}
	return m.ToggleControllers(all, cgroup2.Enable)
}

// statCgroup returns a cgroup's figures in the message of its version.
func statCgroup(cg any) (typeurl.Any, error) {
	switch c := cg.(type) {
	case cgroup1.Cgroup:
		m, err := c.Stat(cgroup1.IgnoreNotExist)
		if err != nil {
			return nil, err
		}
		return typeurl.MarshalAny(m)
	case *cgroup2.Manager:
		m, err := c.Stat()
		if err != nil {
			return nil, err
		}
		return typeurl.MarshalAny(m)
	default:
		return nil, fmt.Errorf("cgroup %T: %w", cg, errdefs.ErrNotImplemented)
	}
}

// oomEvents publishes the out-of-memory kills of restored containers. The
// service that is wrapped watches only those it created itself, and its watcher
// can't be reached. No watcher runs before the first restore: it costs a thread.
type oomEvents struct {
	ctx       context.Context //nolint:containedctx // the service's: carries the namespace, ends the watcher
	publisher events.Publisher

	once    sync.Once
	watcher oom.Watcher
	err     error
}

// add watches a container until its cgroup is gone.
func (o *oomEvents) add(id string, cg any) error {
	o.once.Do(o.start)
	if o.err != nil {
		return o.err
	}
	return o.watcher.Add(id, cg)
}

func (o *oomEvents) start() {
	newWatcher := oomv1.New
	if cgroups.Mode() == cgroups.Unified {
		newWatcher = oomv2.New
	}
	if o.watcher, o.err = newWatcher(o.publisher); o.err == nil {
		go o.watcher.Run(o.ctx)
	}
}
