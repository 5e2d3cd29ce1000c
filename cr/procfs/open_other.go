//go:build !unix

package procfs

import "os"

// file is an open file of a copy of /proc.
type file struct{ *os.File }

func open(name string) (file, error) {
	f, err := os.Open(name)
	return file{f}, err
}

func (f file) names() ([]string, error) { return f.Readdirnames(-1) }

func (f file) close() { _ = f.Close() } //nolint:errcheck // read only
