package migrate

import (
	"context"
	"io"

	"github.com/stasis-cr/stasis/cr"
)

// Source is a container where it runs now, as its host's container manager knows
// it.
type Source interface {
	// Describe is what the other side makes the container of, in whatever form the
	// two hosts agree on.
	Describe(ctx context.Context) ([]byte, error)
	// Engine says which container of which OCI runtime it is. Only the fields that
	// name it are set.
	Engine() cr.CheckpointOptions
	// WriteImage writes the container's image, all that the other side needs of it.
	WriteImage(ctx context.Context, w io.Writer) error
	// WriteRootfs writes what the container has changed of its image's files since
	// the last call; the first call, all that it has changed.
	WriteRootfs(ctx context.Context, w io.Writer) error
	// Remove removes the container, which has ended. It is no error that some or all
	// of it is gone.
	Remove(ctx context.Context) error
	Close() error
}

// Target is a container that is to come, as its host's container manager will
// know it.
type Target interface {
	// Attach says which container it is, to who has not seen its description.
	Attach(id string)
	// Accept looks at a description, and says everything that stands in the way.
	// It makes nothing.
	Accept(ctx context.Context, description []byte) (needImage bool, err error)
	// ReadImage takes what WriteImage wrote.
	ReadImage(ctx context.Context, r io.Reader) error
	// Create makes the container, without a task.
	Create(ctx context.Context) error
	// ReadRootfs takes what WriteRootfs wrote.
	ReadRootfs(ctx context.Context, r io.Reader) error
	// Engine says which container of which OCI runtime it will be: its state root
	// and id.
	Engine() (root, id string)
	// Start restores the container from a checkpoint in dir. It returns when the
	// container goes on, with the host's pid of its init.
	Start(ctx context.Context, dir string) (pid int, err error)
	// Running says whether it goes on, and as which process.
	Running(ctx context.Context) (pid int, err error)
	// Remove ends the container, and removes all that Create and Start made. It is
	// no error that some or all of it is gone.
	Remove(ctx context.Context) error
	Close() error
}
