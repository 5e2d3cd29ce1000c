package lazy

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/mem"
)

// kept are the files that engine, guard and server share besides userfaultfds,
// in the order of a message: plan, journal, record, the image's directory, and the
// page stores as chunks number them. A page server may have them all, or those of the
// image itself: then the others are here.
type kept struct{ files []*os.File }

func (k kept) plan() *os.File    { return k.files[0] }
func (k kept) journal() *os.File { return k.files[1] }

// record is what a checkpoint waits for: locked as long as anybody has it.
func (k kept) record() *os.File { return k.files[2] }

// dir is for the working set.
func (k kept) dir() *os.File { return k.files[3] }

// pages opens the page stores.
func (k kept) pages(index *blob.PageStore) (*mem.Pages, error) {
	stores := k.stores()
	if len(stores) != index.Stores() {
		return nil, fmt.Errorf("%d page stores, want %d", len(stores), index.Stores())
	}
	return mem.OpenPages(index, stores...), nil
}

// stores are the page stores that are here.
func (k kept) stores() []io.ReaderAt {
	var list []io.ReaderAt
	for _, f := range k.files[firstStore:] {
		list = append(list, f)
	}
	return list
}

// firstStore is where the page stores begin.
const firstStore = 4

// whole says whether a message had all that there must be: page stores may be
// another machine's.
func (k kept) whole() bool { return len(k.files) >= firstStore }

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
