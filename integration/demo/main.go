// Command demo moves a running container from one containerd to another, which
// shares nothing with the first: it is checkpointed into an OCI image and
// killed, the image is exported and imported, and the container goes on there
// from exactly the next number. It needs root, and leaves nothing behind.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/integration/harness"
)

func main() {
	if code, done := harness.InCgroupMode(); done {
		os.Exit(code)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("needs root")
	}
	dir, err := os.MkdirTemp("", "stasis-")
	if err != nil {
		return err
	}
	d := &demo{dir: dir}
	defer func() { err = errors.Join(err, d.cleanUp(ctx)) }()
	for _, s := range d.steps() {
		if err := d.take(ctx, s); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	d.print()
	return d.verdict()
}
