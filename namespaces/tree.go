package namespaces

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// tree is a directory tree worked on from outside: every name is relative to its
// root, and is resolved through no symbolic link, no ".." above the root and no
// other mount, whatever the tree is made to look like.
type tree struct{ root *os.File }

// errMount means that a name leads to another mount or beneath one.
var errMount = errors.New("another mount is there")

// open opens a name beneath the root, "." for the root. With O_PATH|O_NOFOLLOW it
// can be a symbolic link itself.
func (t tree) open(name string, flags int) (*os.File, error) {
	for {
		fd, err := unix.Openat2(int(t.root.Fd()), name, &unix.OpenHow{
			Flags:   uint64(flags) | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
		})
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), name), nil
		case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR):
			// A rename elsewhere on the system got in the way of RESOLVE_BENEATH,
			// openat2(2).
		case errors.Is(err, unix.EXDEV):
			return nil, &os.PathError{Op: "open", Path: name, Err: errMount}
		default:
			return nil, &os.PathError{Op: "open", Path: name, Err: err}
		}
	}
}

// look opens a name without touching what it is, and returns its attributes.
func (t tree) look(name string) (*os.File, *unix.Stat_t, error) {
	f, err := t.open(name, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return nil, nil, err
	}
	st, err := stat(f)
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return f, st, nil
}

func stat(f *os.File) (*unix.Stat_t, error) {
	st := new(unix.Stat_t)
	if err := unix.Fstat(int(f.Fd()), st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	return st, nil
}

// names lists a directory in byte order and leaves its access time alone.
func (t tree) names(dir string) (names []string, err error) {
	f, err := t.open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOATIME)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if names, err = f.Readdirnames(-1); err != nil {
		return nil, err
	}
	slices.Sort(names)
	return names, nil
}

// parent opens the directory that holds a name.
func (t tree) parent(name string) (dir *os.File, base string, err error) {
	at := strings.LastIndexByte(name, '/')
	if at < 0 {
		dir, err = t.open(".", unix.O_PATH|unix.O_DIRECTORY)
		return dir, name, err
	}
	dir, err = t.open(name[:at], unix.O_PATH|unix.O_DIRECTORY)
	return dir, name[at+1:], err
}

// inParent runs f with the directory that holds a name, for the system calls
// that make or remove the name.
func (t tree) inParent(op, name string, f func(dir int, base string) error) (err error) {
	dir, base, err := t.parent(name)
	if err != nil {
		return err
	}
	defer dir.Close() //nolint:errcheck // an O_PATH descriptor has nothing to flush
	if err := f(int(dir.Fd()), base); err != nil {
		return &os.PathError{Op: op, Path: name, Err: err}
	}
	return nil
}

// below joins a directory of the tree and a name in it.
func below(dir, name string) string {
	if dir == "." {
		return name
	}
	return dir + "/" + name
}

// xattrs returns the extended attributes that a program in the container sees
// and could have set. Labels of security modules are left to the OCI runtime,
// and so are integrity measurements of the host.
func xattrs(f *os.File) (map[string]string, error) {
	names, err := growing(func(b []byte) (int, error) { return unix.Listxattr(fdPath(f), b) })
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s: list extended attributes: %w", f.Name(), err)
	}
	values := make(map[string]string)
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names), "\x00"), "\x00") {
		if !portable(name) {
			continue
		}
		v, err := growing(func(b []byte) (int, error) { return unix.Getxattr(fdPath(f), name, b) })
		if err != nil {
			return nil, fmt.Errorf("%s: extended attribute %s: %w", f.Name(), name, err)
		}
		values[name] = string(v)
	}
	return values, nil
}

// portable reports whether an extended attribute belongs to the file and not to
// the host (xattr(7)).
func portable(name string) bool {
	switch name {
	case "security.capability", "system.posix_acl_access", "system.posix_acl_default":
		return true
	}
	return strings.HasPrefix(name, "user.") || strings.HasPrefix(name, "trusted.")
}

// growing calls a reader that tells the size it wants, until that fits.
func growing(read func([]byte) (int, error)) ([]byte, error) {
	for {
		n, err := read(nil)
		if err != nil || n == 0 {
			return nil, err
		}
		b := make([]byte, n)
		n, err = read(b)
		if errors.Is(err, unix.ERANGE) {
			continue
		}
		if err != nil {
			return nil, err
		}
		return b[:n], nil
	}
}
