package lazy

import (
	"errors"
	"os"
	"strconv"
)

// kept are the files that engine, guard and server share besides userfaultfds,
// in the order of a message. The image's directory may be missing: it is only for
// the working set.
type kept struct{ files []*os.File }

func (k kept) plan() *os.File    { return k.files[0] }
func (k kept) journal() *os.File { return k.files[1] }
func (k kept) pages() *os.File   { return k.files[2] }

// record is what a checkpoint waits for: locked as long as anybody has it.
func (k kept) record() *os.File { return k.files[3] }

func (k kept) dir() *os.File {
	if len(k.files) > 4 {
		return k.files[4]
	}
	return nil
}

// whole says whether a message had all that there must be.
func (k kept) whole() bool { return len(k.files) >= 4 }

// replace takes a new plan and journal for the old ones.
func (k kept) replace(plan, journal *os.File) error {
	err := errors.Join(k.files[0].Close(), k.files[1].Close())
	k.files[0], k.files[1] = plan, journal
	return err
}

// removeRecord takes the record's name away, unless another container has it.
func (k kept) removeRecord() error {
	path, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(int(k.record().Fd())))
	if err != nil {
		return err
	}
	mine, err := k.record().Stat()
	if err != nil {
		return err
	}
	there, err := os.Lstat(path)
	if err != nil || !os.SameFile(mine, there) {
		return nil //nolint:nilerr // there is nothing of ours to remove
	}
	return os.Remove(path)
}
