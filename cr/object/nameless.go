package object

import (
	"context"
	"fmt"
	"os"

	"github.com/stasis-cr/stasis/cr/blob"

	"golang.org/x/sys/unix"
)

// nameless is a restored inode without a name in the container: a memfd or a
// deleted file. Its descriptions are opened through fd, which is O_PATH: a
// writable one would keep the file from being executed (ETXTBSY).
type nameless struct {
	tag    string
	fd     int
	sealed bool
}

// keep takes a descriptor of a finished inode; fd stays the caller's.
func (r *Restorer) keep(fd int, tag string) (*nameless, error) {
	p, err := reopen(fd, unix.O_PATH)
	if err != nil {
		return nil, err
	}
	r.spare = append(r.spare, p)
	return &nameless{tag: tag, fd: p}, nil
}

// reopen makes one description of the inode.
func (n *nameless) reopen(f *blob.File) (int, error) {
	fd, err := reopen(n.fd, f.Flags)
	if err != nil || f.Flags&unix.O_PATH != 0 {
		return fd, err
	}
	if err := seek(fd, f.Pos); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// fill gives a new inode its bytes, owner and mode. The owner comes first:
// chown(2) takes set-id bits away.
func (r *Restorer) fill(ctx context.Context, f *os.File, contents, mode, uid, gid uint32) error {
	if contents != 0 {
		if err := r.env.ReadContents(ctx, contents, f); err != nil {
			return fmt.Errorf("contents: %w", err)
		}
	}
	if err := unix.Fchown(int(f.Fd()), int(uid), int(gid)); err != nil {
		return fmt.Errorf("chown: %w", err)
	}
	if err := unix.Fchmod(int(f.Fd()), mode&0o7777); err != nil {
		return fmt.Errorf("chmod: %w", err)
	}
	return nil
}
