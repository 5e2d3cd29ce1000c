//go:build unix

package procfs

import (
	"errors"
	"io"
	"io/fs"
	"syscall"
)

// file is an open file of /proc. It spares what os.File does for files that may
// be anything (fstat, fcntl, an attempt to poll): a stopped container waits.
type file struct {
	fd   int
	name string
}

func open(name string) (file, error) {
	for {
		fd, err := syscall.Open(name, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			return file{}, &fs.PathError{Op: "open", Path: name, Err: err}
		}
		return file{fd, name}, nil
	}
}

// Read is that of [io.Reader].
func (f file) Read(b []byte) (int, error) {
	for {
		n, err := syscall.Read(f.fd, b)
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case err != nil:
			return 0, &fs.PathError{Op: "read", Path: f.name, Err: err}
		case n == 0 && len(b) > 0:
			return 0, io.EOF
		}
		return n, nil
	}
}

// names lists a folder.
func (f file) names() (names []string, err error) {
	b := make([]byte, 8<<10)
	for {
		n, err := syscall.ReadDirent(f.fd, b)
		if err != nil {
			return nil, &fs.PathError{Op: "readdirent", Path: f.name, Err: err}
		}
		if n <= 0 {
			return names, nil
		}
		_, _, names = syscall.ParseDirent(b[:n], -1, names)
	}
}

func (f file) close() { _ = syscall.Close(f.fd) } //nolint:errcheck // read only
