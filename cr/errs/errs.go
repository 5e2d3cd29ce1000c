// Package errs says what went wrong, and with which object of which task.
//
// Leaf functions wrap the kernel's answer with %w; the loop over tasks or
// descriptors adds pid and object, once, with an [Error]. Callers tell causes
// apart by the sentinels, never by text.
package errs

import (
	"errors"
	"fmt"
	"strings"
)

// Sentinels by meaning. The command line and the shim map them to exit codes
// and to containerd's error classes.
var (
	// ErrUnsupported marks an object that the engine knows it can't save.
	ErrUnsupported = errors.New("not supported")
	// ErrGone means that the task died while the engine worked on it.
	ErrGone = errors.New("task is gone")
	// ErrCorrupt means that an image's bytes are not what its writer wrote.
	ErrCorrupt = errors.New("image is damaged")
	// ErrVersion means that an image was made by an incompatible version.
	ErrVersion = errors.New("image has an incompatible version")
	// ErrNotImage means that a file or directory is no checkpoint at all.
	ErrNotImage = errors.New("not a stasis checkpoint")
	// ErrHost means that this host can't run what the image holds.
	ErrHost = errors.New("this host does not fit the image")
	// ErrTimeout means that the kernel did not answer within the bound.
	ErrTimeout = errors.New("timed out")
)

// FD is a descriptor number of a task, for messages.
type FD int

func (f FD) String() string { return fmt.Sprintf("fd %d", int(f)) }

// Range is a range of addresses of a task, for messages.
type Range struct{ Start, End uint64 }

func (r Range) String() string { return fmt.Sprintf("mapping %x-%x", r.Start, r.End) }

// Name is any other object, already in words.
type Name string

func (n Name) String() string { return string(n) }

// Error is one failed operation on one object of one task.
type Error struct {
	Op  string       // "capture", "restore"
	PID int          // in the container's pid namespace; 0 if not about one task
	Obj fmt.Stringer // FD, Range, Name, or nil
	Err error
}

func (e *Error) Error() string {
	var b strings.Builder
	if e.Op != "" {
		b.WriteString(e.Op)
		b.WriteByte(' ')
	}
	if e.PID != 0 {
		fmt.Fprintf(&b, "pid %d ", e.PID)
	}
	if e.Obj != nil {
		fmt.Fprintf(&b, "%s ", e.Obj)
	}
	return strings.TrimRight(b.String(), " ") + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// OneLine folds a joined error into one line: containerd and runc's callers
// keep only one line of what a runtime says.
func OneLine(err error) string {
	return strings.Join(strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}
