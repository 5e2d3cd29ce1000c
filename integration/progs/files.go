package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// open is one open file and what must be true of it afterwards.
type open struct {
	what     string
	fd       int
	flags    int // of the description
	pos      int64
	cloexec  bool
	link     string
	ino      uint64
	seekable bool
}

func openFile(what, path string, flags int, pos int64) (open, error) {
	fd, err := unix.Open(path, flags, 0o640)
	if err != nil {
		return open{}, fmt.Errorf("open %s: %w", path, err)
	}
	if pos != 0 {
		if _, err := unix.Seek(fd, pos, io.SeekStart); err != nil {
			return open{}, fmt.Errorf("seek %s: %w", path, err)
		}
	}
	o := open{what: what, fd: fd, seekable: flags&unix.O_PATH == 0}
	return o, o.look(&o)
}

// look reads the state of the descriptor into to.
func (o open) look(to *open) error {
	var st unix.Stat_t
	if err := unix.Fstat(o.fd, &st); err != nil {
		return fmt.Errorf("%s: fstat: %w", o.what, err)
	}
	to.ino = st.Ino
	if st.Mode&unix.S_IFMT == unix.S_IFCHR {
		to.ino = st.Rdev // the node is the new container's own
	}
	fl, err := unix.FcntlInt(uintptr(o.fd), unix.F_GETFL, 0)
	if err != nil {
		return fmt.Errorf("%s: F_GETFL: %w", o.what, err)
	}
	to.flags = fl
	fd, err := unix.FcntlInt(uintptr(o.fd), unix.F_GETFD, 0)
	if err != nil {
		return fmt.Errorf("%s: F_GETFD: %w", o.what, err)
	}
	to.cloexec = fd&unix.FD_CLOEXEC != 0
	if to.link, err = os.Readlink(fmt.Sprintf("/proc/self/fd/%d", o.fd)); err != nil {
		return err
	}
	if o.seekable {
		to.pos, err = unix.Seek(o.fd, 0, io.SeekCurrent)
	}
	return err
}

// check compares the descriptor with what it was.
func (o open) check() error {
	is := o
	if err := o.look(&is); err != nil {
		return err
	}
	return first(
		eq(o.what+": flags", is.flags, o.flags), eq(o.what+": offset", is.pos, o.pos),
		eq(o.what+": close-on-exec", is.cloexec, o.cloexec), eq(o.what+": name", is.link, o.link),
		eq(o.what+": inode", is.ino, o.ino),
	)
}

func checkAll(opens []open) error {
	for _, o := range opens {
		if err := o.check(); err != nil {
			return err
		}
	}
	return nil
}

// files are regular files and folders with their offsets and flags, and
// descriptors that share one description.
func files() (func() error, error) {
	path := ctl + "file"
	if err := os.WriteFile(path, []byte("0123456789"), 0o644); err != nil {
		return nil, err
	}
	for _, dir := range []string{"dir", "dir/a", "dir/b", "dir/c"} {
		if err := os.Mkdir(ctl+dir, 0o755); err != nil {
			return nil, err
		}
	}
	opens, err := openAll(path)
	if err != nil {
		return nil, err
	}
	shared, err := shareOne(path)
	if err != nil {
		return nil, err
	}
	names, rest, err := halfDirectory(ctl + "dir")
	if err != nil {
		return nil, err
	}
	return func() error {
		return first(checkAll(opens), shared(), appends(path), rest(names))
	}, nil
}

func openAll(path string) ([]open, error) {
	var opens []open
	for _, c := range []struct {
		what, path string
		flags      int
		pos        int64
	}{
		{"read only", path, unix.O_RDONLY, 4},
		{"write only", path, unix.O_WRONLY | unix.O_CLOEXEC, 7},
		{"read and write past the end", path, unix.O_RDWR | unix.O_NONBLOCK, 1 << 33},
		{"created", ctl + "new", unix.O_RDWR | unix.O_CREAT | unix.O_EXCL | unix.O_SYNC, 0},
		{"truncated", ctl + "new", unix.O_WRONLY | unix.O_TRUNC, 0},
		{"folder", ctl + "dir", unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC, 0},
		{"file by O_PATH", path, unix.O_PATH | unix.O_CLOEXEC, 0},
		{"folder by O_PATH", ctl + "dir/a", unix.O_PATH | unix.O_DIRECTORY, 0},
		{"no atime", path, unix.O_RDONLY | unix.O_NOFOLLOW, 1},
	} {
		o, err := openFile(c.what, c.path, c.flags, c.pos)
		if err != nil {
			return nil, err
		}
		opens = append(opens, o)
	}
	return opens, nil
}

// shareOne has one description three times, once at a high number, and another
// description of the same file.
func shareOne(path string) (func() error, error) {
	o, err := openFile("shared", path, unix.O_RDWR, 2)
	if err != nil {
		return nil, err
	}
	other, err := openFile("not shared", path, unix.O_RDWR, 2)
	if err != nil {
		return nil, err
	}
	dup, err := unix.Dup(o.fd)
	if err != nil {
		return nil, err
	}
	if err := unix.Dup3(o.fd, 900, unix.O_CLOEXEC); err != nil {
		return nil, err
	}
	return func() error {
		if _, err := unix.Seek(o.fd, 6, io.SeekStart); err != nil {
			return err
		}
		for what, want := range map[int]int64{dup: 6, 900: 6, other.fd: 2} {
			if pos, err := unix.Seek(what, 0, io.SeekCurrent); err != nil || pos != want {
				return fmt.Errorf("offset of %d, one of three duplicates or not: %d (%v), want %d", what, pos, err, want)
			}
		}
		fd, err := unix.FcntlInt(900, unix.F_GETFD, 0)
		return first(err, eq("close-on-exec of one duplicate", fd, unix.FD_CLOEXEC))
	}, nil
}

// appends writes through a descriptor that was opened before the checkpoint.
func appends(path string) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_APPEND, 0)
	if err != nil {
		return err
	}
	if _, err := unix.Write(fd, []byte("!")); err != nil {
		return err
	}
	text, err := os.ReadFile(path)
	return first(err, eq("file", string(text), "0123456789!"))
}

// halfDirectory reads half of a folder; the other half comes afterwards.
func halfDirectory(path string) (names []string, rest func([]string) error, err error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, nil, err
	}
	read := func(names []string, room int) ([]string, error) {
		buf := make([]byte, room)
		n, err := unix.Getdents(fd, buf)
		if err != nil {
			return nil, err
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
		return names, nil
	}
	if names, err = read(nil, 48); err != nil { // room for two short names
		return nil, nil, err
	}
	return names, func(names []string) error {
		for len(names) < 10 {
			more, err := read(names, 4096)
			if err != nil {
				return err
			}
			if len(more) == len(names) {
				break
			}
			names = more
		}
		return eq("names in the folder", len(names), 3)
	}, nil
}

// deleted are files without a name: contents, offsets, two descriptions of one.
func deleted() (func() error, error) {
	big := bytes.Repeat([]byte("deleted "), 40000)
	path := filepath.Join(ctl, "gone")
	if err := os.WriteFile(path, big, 0o604); err != nil {
		return nil, err
	}
	a, err := openFile("first", path, unix.O_RDWR, 8)
	if err != nil {
		return nil, err
	}
	b, err := openFile("second", path, unix.O_RDONLY|unix.O_CLOEXEC, 16)
	if err != nil {
		return nil, err
	}
	if err := unix.Unlink(path); err != nil {
		return nil, err
	}
	hole, err := sparse(ctl + "sparse")
	if err != nil {
		return nil, err
	}
	return func() error {
		return first(twoOfOne(a, b, big), hole())
	}, nil
}

func twoOfOne(a, b open, big []byte) error {
	var sa, sb unix.Stat_t
	if err := errors.Join(unix.Fstat(a.fd, &sa), unix.Fstat(b.fd, &sb)); err != nil {
		return err
	}
	link, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", a.fd))
	if err != nil {
		return err
	}
	got := make([]byte, len(big)+1)
	n, err := unix.Pread(b.fd, got, 0)
	if err != nil {
		return err
	}
	if _, err := unix.Pwrite(a.fd, []byte("X"), 3); err != nil {
		return err
	}
	one := make([]byte, 1)
	if _, err := unix.Pread(b.fd, one, 3); err != nil {
		return err
	}
	return first(
		eq("inode of two descriptions", sa.Ino, sb.Ino), eq("links", uint64(sa.Nlink), 0),
		eq("mode", sa.Mode&0o7777, 0o604), eq("name is marked deleted", strings.HasSuffix(link, " (deleted)"), true),
		eq("contents", bytes.Equal(got[:n], big), true), eq("byte seen through the other", one[0], 'X'),
		offset("first", a.fd, 8), offset("second", b.fd, 16),
	)
}

func offset(what string, fd int, want int64) error {
	pos, err := unix.Seek(fd, 0, io.SeekCurrent)
	return first(err, eq("offset of "+what, pos, want))
}

// sparse is a deleted file of 1 TiB with two bytes in it.
func sparse(path string) (func() error, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT, 0o600)
	if err != nil {
		return nil, err
	}
	const end = 1 << 40
	for _, at := range []int64{5 << 20, end - 1} {
		if _, err := unix.Pwrite(fd, []byte{7}, at); err != nil {
			return nil, err
		}
	}
	if err := unix.Unlink(path); err != nil {
		return nil, err
	}
	return func() error {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return err
		}
		b := make([]byte, 1)
		if _, err := unix.Pread(fd, b, 5<<20); err != nil {
			return err
		}
		return first(eq("size", st.Size, end), eq("byte in a sparse file", b[0], 7),
			eq("it is still sparse", st.Blocks < 1<<16, true))
	}, nil
}

// devices are the nodes that every container has.
func devices() (func() error, error) {
	var opens []open
	for _, name := range []string{"null", "zero", "full", "random", "urandom"} {
		o, err := openFile(name, "/dev/"+name, unix.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		opens = append(opens, o)
	}
	return func() error {
		b := []byte{1, 2, 3}
		if _, err := unix.Read(opens[1].fd, b); err != nil {
			return err
		}
		_, full := unix.Write(opens[2].fd, b)
		n, err := unix.Read(opens[0].fd, b)
		return first(err, checkAll(opens), eq("bytes of /dev/null", n, 0), eq("byte of /dev/zero", b[2], 0),
			wantErr("write to /dev/full", full, unix.ENOSPC))
	}, nil
}

// manyFDs are a thousand descriptions of a few kinds.
func manyFDs() (func() error, error) {
	var opens []open
	for i := range 450 {
		o, err := openFile(fmt.Sprintf("file %d", i), ctl, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return nil, err
		}
		fd, err := unix.Eventfd(uint(i), unix.EFD_NONBLOCK)
		if err != nil {
			return nil, err
		}
		opens = append(opens, o, open{fd: fd, what: "eventfd", ino: uint64(i)})
	}
	return func() error {
		b := make([]byte, 8)
		for i := 0; i < len(opens); i += 2 {
			if err := opens[i].check(); err != nil {
				return err
			}
			n := opens[i+1].ino
			if _, err := unix.Read(opens[i+1].fd, b); n != 0 && (err != nil || uint64(b[0])|uint64(b[1])<<8 != n) {
				return fmt.Errorf("count of eventfd %d: %v (%w), want %d", opens[i+1].fd, b, err, n)
			}
		}
		return nil
	}, nil
}

// locks are held in each of the three ways.
func locks() (func() error, error) {
	path := ctl + "locked"
	if err := os.WriteFile(path, make([]byte, 100), 0o644); err != nil {
		return nil, err
	}
	var fds [3]int
	for i := range fds {
		fd, err := unix.Open(path, unix.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		fds[i] = fd
	}
	posix := unix.Flock_t{Type: unix.F_WRLCK, Start: 10, Len: 20}
	ofd := unix.Flock_t{Type: unix.F_RDLCK, Start: 50, Len: 0}
	err := errors.Join(unix.Flock(fds[0], unix.LOCK_EX), unix.FcntlFlock(uintptr(fds[1]), unix.F_SETLK, &posix),
		unix.FcntlFlock(uintptr(fds[1]), unix.F_OFD_SETLK, &ofd))
	if err != nil {
		return nil, err
	}
	return func() error {
		again := unix.Flock(fds[2], unix.LOCK_EX|unix.LOCK_NB)
		get := unix.Flock_t{Type: unix.F_WRLCK, Start: 0, Len: 30}
		if err := unix.FcntlFlock(uintptr(fds[2]), unix.F_OFD_GETLK, &get); err != nil {
			return err
		}
		got := unix.Flock_t{Type: unix.F_WRLCK, Start: 60, Len: 1}
		if err := unix.FcntlFlock(uintptr(fds[2]), unix.F_OFD_GETLK, &got); err != nil {
			return err
		}
		return first(wantErr("flock by another description", again, unix.EWOULDBLOCK),
			eq("type of the POSIX lock", get.Type, unix.F_WRLCK), eq("its start", get.Start, 10),
			eq("its length", get.Len, 20), eq("its owner", int(get.Pid), os.Getpid()),
			eq("type of the lock of a description", got.Type, unix.F_RDLCK), eq("its start", got.Start, 50))
	}, nil
}
