package procfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/stasis-cr/stasis/cr/errs"
)

// FS is a folder with the layout of /proc.
type FS string

// Proc is where every Linux system mounts its own.
const Proc FS = "/proc"

// read opens root/name and gives it to parse; name is joined from parts. The
// error names the file.
func read[T any](root FS, parse func(io.Reader) (T, error), parts ...string) (T, error) {
	var none T
	name := filepath.Join(append([]string{string(root)}, parts...)...)
	f, err := open(name)
	if err != nil {
		return none, root.gone(err, parts[0])
	}
	defer f.close()
	v, err := parse(f)
	if err != nil {
		return none, root.gone(fmt.Errorf("%s: %w", name, err), parts[0])
	}
	return v, nil
}

// gone adds errs.ErrGone to an error that came because the task of folder pid
// ended: ESRCH for files that were open, ENOENT for those that were not. ENOENT
// alone may also mean a descriptor that was closed or a kernel without the file.
func (root FS) gone(err error, pid string) error {
	if _, e := strconv.Atoi(pid); e != nil {
		return err
	}
	if errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("%w: %w", errs.ErrGone, err)
	}
	if errors.Is(err, fs.ErrNotExist) {
		if _, e := os.Lstat(filepath.Join(string(root), pid)); errors.Is(e, fs.ErrNotExist) {
			return fmt.Errorf("%w: %w", errs.ErrGone, err)
		}
	}
	return err
}

// ReadFile reads a whole file of /proc.
func ReadFile(name string) ([]byte, error) {
	f, err := open(name)
	if err != nil {
		return nil, err
	}
	defer f.close()
	return io.ReadAll(f)
}

// Each calls f for each line of a file of /proc, without its end.
func Each(name string, f func(line string) error) error {
	b, err := ReadFile(name)
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		if err := f(strings.TrimSuffix(line, "\n")); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// numbers lists the entries of a folder whose names are numbers, ascending as
// the kernel lists them.
func (root FS) numbers(parts ...string) ([]int, error) {
	name := filepath.Join(append([]string{string(root)}, parts...)...)
	f, err := open(name)
	if err != nil {
		return nil, root.gone(err, first(parts))
	}
	defer f.close()
	names, err := f.names()
	if err != nil {
		return nil, root.gone(err, first(parts))
	}
	out := make([]int, 0, len(names))
	for _, s := range names {
		if n, err := strconv.Atoi(s); err == nil {
			out = append(out, n)
		}
	}
	return out, nil
}

func first(parts []string) string {
	if len(parts) == 0 {
		return ""
	}
	return parts[0]
}

// Processes lists the thread groups that there are, zombies included.
func (root FS) Processes() ([]int, error) { return root.numbers() }

// Tasks lists the threads of a process, the leader included. A thread may end
// or begin while the list is made.
func (root FS) Tasks(pid int) ([]int, error) { return root.numbers(strconv.Itoa(pid), "task") }

// FDs lists the open descriptors of a process.
func (root FS) FDs(pid int) ([]int, error) { return root.numbers(strconv.Itoa(pid), "fd") }

// ReadProcesses lists the thread groups of this machine.
func ReadProcesses() ([]int, error) { return Proc.Processes() }

// ReadTasks lists the threads of a process, the leader included.
func ReadTasks(pid int) ([]int, error) { return Proc.Tasks(pid) }

// ReadFDs lists the open descriptors of a process.
func ReadFDs(pid int) ([]int, error) { return Proc.FDs(pid) }
