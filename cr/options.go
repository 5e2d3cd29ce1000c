package cr

import (
	"context"
	"log/slog"
	"time"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/mem"
	"github.com/stasis-cr/stasis/cr/pageserver"
)

// CheckpointOptions says what to checkpoint and how. Unless said otherwise the
// fields are the flags of runc checkpoint.
type CheckpointOptions struct {
	ID          string
	Root        string   // state root of the OCI runtime; empty: its default
	Runtime     string   // path of the OCI runtime
	RuntimeArgs []string // its global flags

	ImageDir string // where the image goes
	WorkDir  string // where logs go; empty: ImageDir

	LeaveRunning   bool
	NoPrecopy      bool   // save all memory while the container stands still
	PreDump        bool   // LeaveRunning, and follow what is written afterwards
	ParentPath     string // an earlier checkpoint to build upon, from ImageDir; empty: none
	TCPEstablished bool
	FileLocks      bool
	ExtUnixSk      bool
	ShellJob       bool

	// Compress is how pages are stored where they shrink by it: none, s2 or zstd;
	// empty: s2. It is no flag of runc.
	Compress string

	// Handover is called when the checkpoint is complete and the container, unless
	// it is left running, stands still. If it fails the container goes on; a Held
	// that is frozen then stays so. Nil: the container ends at once.
	Handover func(context.Context, *Held) error

	Log      *slog.Logger   // nil: discard
	Progress func(Progress) // nil: none
}

// follows says whether what the container writes after the checkpoint is to be
// known to the next one.
func (o *CheckpointOptions) follows() bool {
	return o.LeaveRunning && (o.PreDump || o.ParentPath != "")
}

// RestoreOptions says what to restore and how. Unless said otherwise the fields
// are the flags of runc restore.
type RestoreOptions struct {
	ID          string
	Root        string
	Runtime     string
	RuntimeArgs []string

	ImageDir      string
	WorkDir       string
	Bundle        string
	ConsoleSocket string
	PidFile       string
	Detach        bool
	NoPivot       bool
	NoSubreaper   bool
	LazyPages     bool // private memory is filled while the container runs

	// PageServer has the checkpoint, which comes into ImageDir; with LazyPages its
	// page stores do not. Without an address the checkpoint is in ImageDir. It is
	// no flag of runc, nor are its keys.
	PageServer pageserver.Remote

	Log      *slog.Logger
	Progress func(Progress)
}

// Progress is how far a step that takes long has come, in bytes.
type Progress struct {
	Phase       string
	Done, Total int64
}

// Stats are the figures of one checkpoint or restore.
type Stats struct {
	Frozen     time.Duration // how long the container stood still
	Held       time.Duration // how long it did before that, in slices of milliseconds
	Total      time.Duration
	ImageBytes int64 // all files of the image
	PagesBytes int64 // page data in it
	Tasks      int   // processes, zombies included
	Threads    int
}

// defaultCompress is what costs least time in all: to compress by s2 is not much
// slower than to write what it saves.
const defaultCompress = "s2"

// codec is what Compress says.
func (o *CheckpointOptions) codec() (blob.Chunk_Codec, error) {
	if o.Compress == "" {
		return mem.ParseCodec(defaultCompress)
	}
	return mem.ParseCodec(o.Compress)
}

func logger(l *slog.Logger) *slog.Logger {
	if l == nil {
		return slog.New(slog.DiscardHandler)
	}
	return l
}
