// Command containerd-shim-stasis-v1 is the containerd shim that checkpoints and
// restores containers with stasis. containerd starts it for the runtime
// io.containerd.stasis.v1, or for io.containerd.runc.v2 with its path as the
// runtime path.
package main

import (
	"context"
	"fmt"
	"os"

	containerd "github.com/containerd/containerd/v2/pkg/shim"

	"github.com/stasis-cr/stasis/plugin"
	"github.com/stasis-cr/stasis/shim"
)

func main() {
	if err := shim.UseStasis(); err != nil {
		fmt.Fprintln(os.Stderr, "containerd-shim-stasis-v1:", err)
		os.Exit(1)
	}
	plugin.Register()
	containerd.RunShim(context.Background(), shim.NewManager("io.containerd.stasis.v1"))
}
