package cr

import (
	"log/slog"
	"time"
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
	TCPEstablished bool
	FileLocks      bool
	ExtUnixSk      bool
	ShellJob       bool

	Log      *slog.Logger   // nil: discard
	Progress func(Progress) // nil: none
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
	Total      time.Duration
	ImageBytes int64 // all files of the image
	PagesBytes int64 // page data in it
	Tasks      int   // processes, zombies included
	Threads    int
}

func logger(l *slog.Logger) *slog.Logger {
	if l == nil {
		return slog.New(slog.DiscardHandler)
	}
	return l
}
