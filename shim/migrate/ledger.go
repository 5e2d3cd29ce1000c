package migrate

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// DefaultDir is where both sides keep checkpoints on their way, and the target
// what became of them.
const DefaultDir = "/var/lib/stasis/migrate"

var idForm = regexp.MustCompile(`^[0-9a-f]{32}$`)

// newID names a migration so that nobody guesses it.
func newID() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b)
	return hex.EncodeToString(b)
}

// outcome is what became of a migration.
type outcome string

const (
	outcomeOpen    outcome = ""        // it goes on, or whoever did it has died
	outcomeGoing   outcome = "going"   // the word was given; it may run
	outcomeRunning outcome = "running" // it runs here, or did
	outcomeDropped outcome = "dropped" // it does not, and never will
)

// entry is what the target has on disk of a migration. It is written before what
// it says is done: a later process undoes more than was done rather than less.
type entry struct {
	Container string  `json:"container"`
	Outcome   outcome `json:"outcome"`
	PID       int     `json:"pid,omitempty"`
	Why       string  `json:"why,omitempty"` // it was dropped
	Lazy      bool    `json:"lazy,omitempty"`
}

// file is the ledger's page of one migration: a directory for what comes, which
// is locked as long as a session works on it, and an entry beside it, which stays.
type file struct {
	dir   string
	lock  *os.File
	entry entry
}

const entrySuffix = ".json"

func newFile(work, id string) *file { return &file{dir: filepath.Join(work, id)} }

// entryKept is for how long an entry answers questions.
const entryKept = 7 * 24 * time.Hour

// openFile makes the page of a migration that nobody has heard of.
func openFile(ctx context.Context, work, id string) (_ *file, err error) {
	if !idForm.MatchString(id) {
		return nil, fmt.Errorf("%q is no name of a migration: %w", id, errProtocol)
	}
	if err := os.MkdirAll(work, 0o700); err != nil {
		return nil, err
	}
	f := newFile(work, id)
	if _, err := os.Lstat(f.dir + entrySuffix); !errors.Is(err, fs.ErrNotExist) {
		return nil, errors.Join(fmt.Errorf("migration %s has been here before", id), err)
	}
	if err := os.Mkdir(f.dir, 0o700); err != nil {
		return nil, err
	}
	if err := f.take(ctx); err != nil {
		return nil, errors.Join(err, os.RemoveAll(f.dir))
	}
	return f, nil
}

// errUnknown is no answer: who asks had been told that its container is ready, so
// that there must be an entry, here or in the directory of another server.
var errUnknown = errors.New("no migration of that name has been here: is it the same --work-path?")

// findFile takes the page of a migration when no session works on it any more.
// Without a directory there is only the entry to read; without that the error is
// errUnknown.
func findFile(ctx context.Context, work, id string) (*file, error) {
	if !idForm.MatchString(id) {
		return nil, fmt.Errorf("%q is no name of a migration: %w", id, errProtocol)
	}
	f := newFile(work, id)
	if err := f.take(ctx); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return f, f.read()
}

// take locks the directory, when whoever has it lets it go.
func (f *file) take(ctx context.Context) (err error) {
	for {
		f.lock, err = lockDir(f.dir, unix.LOCK_EX)
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}

// lockDir locks a directory, or fails with EWOULDBLOCK. The lock is that of the
// file that it returns.
func lockDir(path string, how int) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (f *file) read() error {
	b, err := os.ReadFile(f.dir + entrySuffix)
	if errors.Is(err, fs.ErrNotExist) {
		f.entry = entry{}
		if f.lock == nil {
			return errUnknown
		}
		return nil // it had not come to that
	}
	if err != nil {
		return err
	}
	return json.Unmarshal(b, &f.entry)
}

// write makes the entry what it says now.
func (f *file) write() error {
	b, err := json.Marshal(f.entry)
	if err != nil {
		return err
	}
	tmp := f.dir + ".tmp"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, f.dir+entrySuffix)
}

// settle writes what became of it.
func (f *file) settle(o outcome, pid int, why string) error {
	f.entry.Outcome, f.entry.PID, f.entry.Why = o, pid, why
	return f.write()
}

// checkpoint is where a round lies, and the last one with a negative number.
func (f *file) checkpoint(round int) string { return filepath.Join(f.dir, roundName(round)) }

func roundName(round int) string {
	if round < 0 {
		return "final"
	}
	return fmt.Sprintf("round-%d", round)
}

// empty removes what came. The entry stays.
func (f *file) empty() error { return os.RemoveAll(f.dir) }

// close lets others work on it.
func (f *file) close() error {
	if f.lock == nil {
		return nil
	}
	err := f.lock.Close()
	f.lock = nil
	return err
}

// sweep removes entries that nobody will ask about, and names those whose session
// has died.
func sweep(work string, now time.Time) (dead []string, err error) {
	list, err := os.ReadDir(work)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, e := range list {
		id, isEntry := strings.CutSuffix(e.Name(), entrySuffix)
		switch {
		case !idForm.MatchString(id):
		case !isEntry:
			dead = append(dead, id)
		default:
			info, e := e.Info()
			_, open := os.Lstat(filepath.Join(work, id)) // then what it says is needed
			if e == nil && errors.Is(open, fs.ErrNotExist) && now.Sub(info.ModTime()) > entryKept {
				err = errors.Join(err, os.Remove(filepath.Join(work, id+entrySuffix)))
			}
		}
	}
	return dead, err
}

// pause is the time between two looks at something that nobody tells of.
const pause = 2 * time.Millisecond
