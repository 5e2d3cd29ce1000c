package cr

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// claim marks a container as the half-made one of a restore, from before the OCI
// runtime makes it until it is about to go on. It is a directory of its own for
// each container, locked as long as the restore lives.
//
// A restore that is killed can't remove what the runtime made. The next one of
// the same container finds the claim unlocked. What it finds under the id is the
// half-made container if it was created after the claim was made, with the init
// whose pid the runtime wrote into the claim.
type claim struct {
	dir  string
	lock *os.File
	keep bool // drop leaves it for the next restore to clean up by
}

// claimRoot is where claims live: gone after a reboot, like the containers.
func claimRoot() string {
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" && os.Geteuid() != 0 {
		return filepath.Join(dir, "stasis")
	}
	return "/run/stasis"
}

// ownName is a path of ours for a container: ids are unique only within one state
// root.
func ownName(what, root, id string) string {
	if root == "" {
		root = stateRoots("")[0]
	}
	sum := sha256.Sum256([]byte(root + "\x00" + id))
	return filepath.Join(claimRoot(), fmt.Sprintf("%s-%.100s-%x", what, filepath.Base(id), sum[:8]))
}

func (c *claim) pidFile() string   { return filepath.Join(c.dir, "pid") }
func (c *claim) begunFile() string { return filepath.Join(c.dir, "begun") }

// claimContainer claims the container of a restore that has not made it yet, and
// removes what a killed restore left of it.
func claimContainer(ctx context.Context, o *RestoreOptions) (c *claim, err error) {
	c = &claim{dir: ownName("restore", o.Root, o.ID)}
	if err := c.acquire(o.ID); err != nil {
		return nil, err
	}
	mine := c // what is returned is nil on an error
	defer func() {
		if err != nil {
			err = errors.Join(err, mine.drop())
		}
	}()
	if err := c.clean(ctx, o); err != nil {
		c.keep = true
		return nil, fmt.Errorf("remove what an earlier restore left of container %s: %w", o.ID, err)
	}
	// The runtime would say so too, but on the stderr that is the container's.
	if init, _, err := madeAs(ctx, o); err == nil && init != 0 {
		return nil, fmt.Errorf("container %s already exists: delete it first, or restore under another name", o.ID)
	}
	begun, err := time.Now().MarshalText()
	if err != nil {
		return nil, fmt.Errorf("claim: %w", err)
	}
	return c, os.WriteFile(c.begunFile(), begun, 0o600)
}

// acquire makes the directory and locks it. One that its owner removes meanwhile
// is made again.
func (c *claim) acquire(id string) error {
	for {
		if err := os.MkdirAll(c.dir, 0o700); err != nil {
			return fmt.Errorf("claim: %w", err)
		}
		f, err := os.Open(c.dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("claim: %w", err)
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			return errors.Join(fmt.Errorf("container %s is being restored by another process", id), f.Close())
		}
		if err != nil {
			return errors.Join(fmt.Errorf("lock %s: %w", c.dir, err), f.Close())
		}
		if sameFile(f, c.dir) {
			c.lock = f
			return nil
		}
		if err := f.Close(); err != nil {
			return fmt.Errorf("claim: %w", err)
		}
	}
}

func sameFile(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Lstat(path)
	return err == nil && os.SameFile(a, b)
}

// clean removes a half-made container, if the claim says that there is one, and
// what is in the claim.
func (c *claim) clean(ctx context.Context, o *RestoreOptions) error {
	mine, err := c.covers(ctx, o)
	if err != nil {
		return err
	}
	if mine {
		if err := deleteContainer(ctx, o); err != nil {
			return err
		}
	}
	names, err := c.lock.Readdirnames(-1)
	for _, n := range names {
		err = errors.Join(err, os.RemoveAll(filepath.Join(c.dir, n)))
	}
	return err
}

// covers says whether the container with the id is the one that the claim was
// made for. Where anything is missing to tell, it is not.
func (c *claim) covers(ctx context.Context, o *RestoreOptions) (bool, error) {
	text, err := os.ReadFile(c.begunFile())
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	var begun time.Time
	if begun.UnmarshalText(text) != nil {
		return false, nil //nolint:nilerr // no claim of ours
	}
	pid, err := readPid(c.pidFile())
	if err != nil {
		return false, nil //nolint:nilerr // the runtime did not come so far
	}
	init, created, err := madeAs(ctx, o)
	if err != nil {
		return false, err
	}
	return init == pid && created.After(begun), nil
}

// madeAs says which init a container was made with, and when; 0 if there is no
// such container. runc's record tells even when the init is dead.
func madeAs(ctx context.Context, o *RestoreOptions) (init int, created time.Time, err error) {
	init, created, err = recordedAs(o)
	if !errors.Is(err, fs.ErrNotExist) {
		return init, created, err
	}
	if filepath.Base(o.Runtime) == "runc" {
		return 0, created, nil // it has no other record, and to ask it takes as long as to restore a small container
	}
	out, err := runRuntime(ctx, o.Runtime, append(slices.Clone(o.RuntimeArgs), "state", o.ID), nil)
	if err != nil {
		return 0, created, nil //nolint:nilerr // there is no such container
	}
	var st struct {
		Pid     int
		Created time.Time
	}
	if err := json.Unmarshal(out, &st); err != nil {
		return 0, created, fmt.Errorf("state: %w", err)
	}
	return st.Pid, st.Created, nil
}

// recordedAs is madeAs by runc's record; fs.ErrNotExist: there is none.
func recordedAs(o *RestoreOptions) (init int, created time.Time, err error) {
	dir, err := stateDir(o.Root, o.ID)
	if err != nil {
		return 0, created, err
	}
	b, err := os.ReadFile(filepath.Join(dir, "state.json"))
	if err != nil {
		return 0, created, err
	}
	var st runcState
	if err := json.Unmarshal(b, &st); err != nil {
		return 0, created, fmt.Errorf("state.json: %w", err)
	}
	return st.InitPID, st.Created, nil
}

// drop ends the claim. It may be called twice.
func (c *claim) drop() error {
	if c.lock == nil {
		return nil
	}
	var err error
	if !c.keep {
		err = os.RemoveAll(c.dir)
	}
	err = errors.Join(err, c.lock.Close())
	c.lock = nil
	return err
}

func deleteContainer(ctx context.Context, o *RestoreOptions) error {
	_, err := runRuntime(ctx, o.Runtime, append(slices.Clone(o.RuntimeArgs), "delete", "--force", o.ID), nil)
	return err
}
