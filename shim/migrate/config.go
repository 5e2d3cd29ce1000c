package migrate

import (
	"time"

	"github.com/stasis-cr/stasis/cr/pageserver"
)

// Command is the program that has the connection with containerd, which the stasis
// command itself does not need: it runs for every step of every container, and
// would start later with it. Its first argument is one of the verbs, its second the
// JSON of that verb's configuration.
const Command = "stasis-migrate"

// The verbs of the command.
const (
	SourceVerb  = "source"  // a SourceConfig
	ListenVerb  = "listen"  // a ListenConfig
	SessionVerb = "session" // a ListenConfig; the connection is descriptor 3
	GuardVerb   = "guard"   // a Place; see [Guard] for stdin and stdout
)

// Place is a container in a containerd.
type Place struct {
	Socket, Namespace string
	ID                string
}

// SourceConfig says which container goes where; see [Options].
type SourceConfig struct {
	Place
	To       string
	Keys     pageserver.Keys
	Dir      string
	Listen   string
	Lazy     bool
	Downtime time.Duration
	Rounds   int
	Compress string
	Keep     bool
	Debug    bool
}

// ListenConfig says who takes containers; see [ListenOptions].
type ListenConfig struct {
	Socket, Namespace    string
	Runtime, Snapshotter string
	LogDir               string
	Listen               string
	Keys                 pageserver.Keys
	Dir                  string
	Debug                bool
}
