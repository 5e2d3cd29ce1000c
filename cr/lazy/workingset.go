package lazy

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/mem"
)

// WorkingSetFile is where the order of the faults of lazy runs is kept beside an
// image. Nothing depends on it but the order in which memory is filled.
const WorkingSetFile = "working-set"

// The file:
//
//	 0  8  magic: 89 53 54 53 57 53 53 0a
//	 8  8  when the image's container was frozen, ns: of another image it is ignored
//	16  4  number of entries, at most 16384
//	20  4  CRC-32C of the entries
//	24     entries of 16 bytes: u64 address, i32 pid in the container, u32 pages
const (
	setMagic  = "\x89STSWSS\n"
	setHeader = 24
	setEntry  = 16
	setMost   = 1 << 14
	setTemp   = ".stasis-working-set.tmp" // swept with the temporary files of checkpoints
)

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	errBadSet  = errors.New("working set is damaged")
)

// workingSet is what earlier runs needed, and what this one needs beside it.
type workingSet struct {
	image int64
	old   []window

	mu  sync.Mutex
	now []window
}

// note adds what a fault needed. Children that were born since have no name that
// another run would know.
func (w *workingSet) note(pid int32, start, end uint64) {
	if pid == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.now) < setMost {
		w.now = append(w.now, window{pid, start, end})
	}
}

// load reads the file. One that is not there, damaged or another image's changes
// nothing.
func (w *workingSet) load(dir *os.File, log *slog.Logger) {
	b, err := readSet(dir)
	if err == nil {
		w.old, err = decodeSet(b, w.image)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Debug("no working set", slog.Any("why", err))
	}
}

func readSet(dir *os.File) ([]byte, error) {
	fd, err := unix.Openat(int(dir.Fd()), WorkingSetFile, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), WorkingSetFile)
	defer f.Close() //nolint:errcheck // read only
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, errors.Join(errBadSet, err)
	}
	return io.ReadAll(io.LimitReader(f, setHeader+setMost*setEntry+1))
}

func decodeSet(b []byte, image int64) ([]window, error) {
	if len(b) < setHeader || string(b[:8]) != setMagic {
		return nil, errBadSet
	}
	n, sum, body := le.Uint32(b[16:]), le.Uint32(b[20:]), b[setHeader:]
	switch {
	case n > setMost || uint64(len(body)) != uint64(n)*setEntry || crc32.Checksum(body, castagnoli) != sum:
		return nil, errBadSet
	case int64(le.Uint64(b[8:])) != image:
		return nil, fmt.Errorf("it is another image's")
	}
	list := make([]window, 0, n)
	for ; len(body) > 0; body = body[setEntry:] {
		start, pid, pages := le.Uint64(body), int32(le.Uint32(body[8:])), le.Uint32(body[12:])
		size := uint64(pages) * mem.PageSize
		if start%mem.PageSize != 0 || size == 0 || size > mem.ChunkSize || start >= 1<<47 || pid <= 0 {
			return nil, errBadSet
		}
		list = append(list, window{pid, start, start + size})
	}
	return list, nil
}

func encodeSet(list []window, image int64) []byte {
	b := le.AppendUint64([]byte(setMagic), uint64(image))
	b = le.AppendUint32(b, uint32(len(list)))
	b = append(b, 0, 0, 0, 0)
	for _, w := range list {
		b = le.AppendUint64(b, w.start)
		b = le.AppendUint32(le.AppendUint32(b, uint32(w.pid)), uint32((w.end-w.start)/mem.PageSize))
	}
	le.PutUint32(b[20:], crc32.Checksum(b[setHeader:], castagnoli))
	return b
}

// merged is the set for the next run: what was known, then what was missing from
// it. What was known can't be told from what is needed still, since it came
// before it was asked for.
func (w *workingSet) merged() []window {
	w.mu.Lock()
	defer w.mu.Unlock()
	seen := map[window]bool{}
	var list []window
	for _, l := range [][]window{w.old, w.now} {
		for _, x := range l {
			if !seen[x] && len(list) < setMost {
				seen[x] = true
				list = append(list, x)
			}
		}
	}
	return list
}

// save writes the file, complete or not at all. A directory that can't be
// written to, or is gone, costs only the order of the next run.
func (w *workingSet) save(dir *os.File, log *slog.Logger) {
	list := w.merged()
	if len(list) == len(w.old) {
		return
	}
	if err := writeSet(dir, encodeSet(list, w.image)); err != nil {
		log.Debug("working set not kept", slog.Any("why", err))
	}
}

func writeSet(dir *os.File, b []byte) error {
	at := int(dir.Fd())
	if err := unix.Unlinkat(at, setTemp, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	fd, err := unix.Openat(at, setTemp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), setTemp)
	_, err = f.Write(b)
	err = errors.Join(err, f.Close())
	if err == nil {
		err = unix.Renameat(at, setTemp, at, WorkingSetFile)
	}
	if err != nil {
		return errors.Join(err, unix.Unlinkat(at, setTemp, 0))
	}
	return nil
}
