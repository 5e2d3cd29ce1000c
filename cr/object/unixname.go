package object

import (
	"context"
	"errors"
	"fmt"
	"path"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/sys"

	"golang.org/x/sys/unix"
)

// fileID tells whether a path still leads to the file that we made.
type fileID struct{ dev, ino uint64 }

// inPlace runs f where a name means what it did: relative names in the directory,
// absolute ones beneath the changed root that the program had. The calling
// thread shares its working directory and root with nobody.
func inPlace(s *blob.UnixSocket, f func() error) (err error) {
	if s.Dir == "" || len(s.Name) == 0 || s.Name[0] == 0 {
		return f()
	}
	if !path.IsAbs(string(s.Name)) {
		if err := unix.Chdir(s.Dir); err != nil {
			return fmt.Errorf("enter %s: %w", s.Dir, err)
		}
		defer func() { err = errors.Join(err, unix.Chdir("/")) }()
		return f()
	}
	root, err := openRoot()
	if err != nil {
		return err
	}
	defer unix.Close(root)
	if err := unix.Chroot(s.Dir); err != nil {
		return fmt.Errorf("enter %s: %w", s.Dir, err)
	}
	defer func() { err = errors.Join(err, unix.Fchdir(root), unix.Chroot("."), unix.Chdir("/")) }()
	return f()
}

// bind binds a socket for good, or, if its file was deleted, for a moment. Should
// the restore fail, the file goes again.
func (m *unixMaker) bind(fd int, s *blob.UnixSocket) error {
	return inPlace(s, func() error {
		id, err := bindName(fd, s)
		if err != nil || s.Name[0] == 0 {
			return err
		}
		if s.Gone {
			return unlinkName(s, id)
		}
		dir, err := unix.Open(path.Dir(string(s.Name)), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		m.r.spare = append(m.r.spare, dir)
		m.r.undo.Add(func(context.Context) error { return unlinkIf(dir, path.Base(string(s.Name)), id) })
		return nil
	})
}

// bindName binds and sets mode and owner of the file. The socket file of the
// time before is in the way, and removed if it is one.
func bindName(fd int, s *blob.UnixSocket) (fileID, error) {
	name := string(s.Name)
	var st unix.Stat_t
	if s.Name[0] != 0 && unix.Lstat(name, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFSOCK {
		if err := unix.Unlink(name); err != nil {
			return fileID{}, fmt.Errorf("remove the old socket %s: %w", name, err)
		}
	}
	if err := sys.BindUnix(fd, s.Name); err != nil {
		return fileID{}, fmt.Errorf("bind to %q: %w", name, err)
	}
	if s.Name[0] == 0 {
		return fileID{}, nil
	}
	if err := unix.Lchown(name, int(s.Uid), int(s.Gid)); err != nil {
		return fileID{}, fmt.Errorf("chown %s: %w", name, err)
	}
	if err := unix.Fchmodat(unix.AT_FDCWD, name, s.Mode&0o7777, 0); err != nil {
		return fileID{}, fmt.Errorf("chmod %s: %w", name, err)
	}
	if err := unix.Lstat(name, &st); err != nil {
		return fileID{}, fmt.Errorf("stat %s: %w", name, err)
	}
	return fileID{st.Dev, st.Ino}, nil
}

// unlinkName takes a file away that was there only for its name to be had.
func unlinkName(s *blob.UnixSocket, id fileID) error {
	if s.Name[0] == 0 {
		return nil
	}
	return unlinkIf(unix.AT_FDCWD, string(s.Name), id)
}

// unlinkIf removes a name that still leads to the file it was made for.
func unlinkIf(dir int, name string, id fileID) error {
	var st unix.Stat_t
	err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil || st.Dev != id.dev || st.Ino != id.ino {
		return nil //nolint:nilerr // gone, or another's by now
	}
	if err := unix.Unlinkat(dir, name, 0); err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return nil
}
