package object

import (
	"context"

	"google.golang.org/protobuf/proto"
)

// Kind is one kind of open file description.
type Kind struct {
	Tag string // blob.File.Kind; never reused
	Rev uint32 // revision of the body written today
	// New returns an empty body.
	New func() proto.Message
	// Match says whether a description is of this kind. It only looks.
	Match func(*Capture, *Desc) bool
	// Capture makes the body. It only looks: the container may run on.
	Capture func(context.Context, *Capture, *Desc) (proto.Message, error)
	// Finish, if not nil, sees all descriptions of the kind at the end.
	Finish func(context.Context, *Capture, []*object) error
	// Prepare, if not nil, runs on a thread inside the container's namespaces,
	// once, with all records of the kind.
	Prepare func(context.Context, *Restorer, []*record) error
	// Open makes the description, in our process; flags, position and owner
	// are set by the caller.
	Open func(context.Context, *Restorer, *record) (int, error)
	// Link, if not nil, does what must be done by calls in a process.
	Link func(context.Context, *Restorer, *record, Process) error
	// Arm, if not nil, does what comes last.
	Arm func(context.Context, *Restorer, *record) error
}

// Kinds lists everything this engine can save. The first that matches has it:
// externals before all, names in a file system last.
func Kinds() []Kind {
	return []Kind{
		externalKind(),
		eventFDKind(),
		signalFDKind(),
		timerFDKind(),
		ePollKind(),
		pipeKind(),
		fifoKind(),
		memFDKind(),
		ghostFileKind(),
		unixSocketKind(),
		inetSocketKind(),
		pathFileKind(),
	}
}
