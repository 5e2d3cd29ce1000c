package object

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/stasis-cr/stasis/cr/blob"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

const (
	memfdPrefix  = "/memfd:"
	hugeTLBMagic = 0x958458f6 // include/uapi/linux/magic.h
	mfdExec      = 0x10       // MFD_EXEC, Linux 6.3: no F_SEAL_EXEC by the sysctl vm.memfd_noexec
)

// A memfd is a file that never had a name. Its seals come last of all.
func memFDKind() Kind {
	return Kind{
		Tag: "memfd", Rev: 1,
		New: func() proto.Message { return &blob.MemFD{} },
		// The kernel's own mount of tmpfs tells it from a file that is called so.
		Match: func(c *Capture, d *Desc) bool {
			return strings.HasPrefix(d.Link, memfdPrefix) && d.is(unix.S_IFREG) && !c.mounts[d.stat.Mnt_id]
		},
		Capture: captureMemFD,
		Open:    openMemFD,
		Arm:     sealMemFD,
	}
}

// captureMemFD opens the inode anew to ask for its seals: the program's own
// description may be open for writing only.
func captureMemFD(ctx context.Context, c *Capture, d *Desc) (proto.Message, error) {
	name, _ := d.path()
	var fs unix.Statfs_t
	if err := unix.Statfs(d.via, &fs); err != nil {
		return nil, fmt.Errorf("statfs: %w", err)
	}
	if fs.Type == hugeTLBMagic {
		return nil, unsupported("memfd %s has huge pages of hugetlbfs", name)
	}
	f, err := d.open()
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // read only
	seals, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0)
	if err != nil {
		return nil, fmt.Errorf("F_GET_SEALS: %w", err)
	}
	n, err := c.inode(ctx, d)
	if err != nil {
		return nil, err
	}
	return &blob.MemFD{
		Name: strings.TrimPrefix(name, memfdPrefix), Seals: uint32(seals), Mode: uint32(d.stat.Mode),
		Uid: d.stat.Uid, Gid: d.stat.Gid, Contents: n.contents, Inode: n.id,
	}, nil
}

// openMemFD makes the inode for its first description.
func openMemFD(ctx context.Context, r *Restorer, rec *record) (int, error) {
	m := rec.body.(*blob.MemFD)
	n := r.inodes[m.Inode]
	if n == nil {
		var err error
		if n, err = r.makeMemFD(ctx, m); err != nil {
			return -1, err
		}
		r.inodes[m.Inode] = n
	}
	if n.tag != rec.kind.Tag {
		return -1, corrupt("inode %d is a %s, too", m.Inode, n.tag)
	}
	return n.reopen(rec.file)
}

// makeMemFD allows sealing whatever the seals are: those that were there, F_SEAL_SEAL
// among them, are put on again.
func (r *Restorer) makeMemFD(ctx context.Context, m *blob.MemFD) (*nameless, error) {
	if m.HugeShift != 0 {
		return nil, unsupported("a memfd with huge pages of hugetlbfs")
	}
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate(m.Name, flags|mfdExec)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3
		fd, err = unix.MemfdCreate(m.Name, flags)
	}
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), m.Name)
	defer f.Close() //nolint:errcheck // nothing is buffered, and keep has its own
	if err := r.fill(ctx, f, m.Contents, m.Mode, m.Uid, m.Gid); err != nil {
		return nil, err
	}
	return r.keep(fd, "memfd")
}

// sealMemFD comes after all mappings: F_SEAL_FUTURE_WRITE allows those that
// exist, and none of the seals can be taken off again.
func sealMemFD(_ context.Context, r *Restorer, rec *record) error {
	m := rec.body.(*blob.MemFD)
	n := r.inodes[m.Inode]
	if n.sealed || m.Seals == 0 {
		return nil
	}
	fd, err := reopen(n.fd, unix.O_RDWR) // sealing asks for a writable descriptor
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, int(m.Seals)); err != nil {
		return fmt.Errorf("F_ADD_SEALS %#x: %w", m.Seals, err)
	}
	n.sealed = true
	return nil
}
