// Package plugin makes the shim's task service known to containerd's plugin
// registry, and does nothing else.
package plugin

import (
	"fmt"

	containerd "github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/containerd/v2/pkg/shutdown"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"

	"github.com/stasis-cr/stasis/shim"
)

// Register adds the task service. containerd's shim framework serves one task
// service, under the name "task"; call it once, before shim.RunShim.
func Register() {
	registry.Register(&plugin.Registration{
		Type:     plugins.TTRPCPlugin,
		ID:       "task",
		Requires: []plugin.Type{plugins.EventPlugin, plugins.InternalPlugin},
		InitFn:   newTask,
	})
}

func newTask(ic *plugin.InitContext) (any, error) {
	publisher, err := get[containerd.Publisher](ic, plugins.EventPlugin, "publisher")
	if err != nil {
		return nil, err
	}
	sd, err := get[shutdown.Service](ic, plugins.InternalPlugin, "shutdown")
	if err != nil {
		return nil, err
	}
	return shim.NewService(ic.Context, publisher, sd)
}

func get[T any](ic *plugin.InitContext, kind plugin.Type, id string) (T, error) {
	var zero T
	p, err := ic.GetByID(kind, id)
	if err != nil {
		return zero, err
	}
	t, ok := p.(T)
	if !ok {
		return zero, fmt.Errorf("plugin %s.%s is a %T", kind, id, p)
	}
	return t, nil
}
