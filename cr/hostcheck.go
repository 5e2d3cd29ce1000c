package cr

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/cr/mem"
)

// checkHost refuses an image that this host can't run, before anything is made.
// What the processor must be able to do is checked by the thread that needs it.
func checkHost(img *blob.Image, log *slog.Logger) error {
	now, err := hostFacts()
	if err != nil {
		return err
	}
	was := img.Host
	switch {
	case was.Machine != now.Machine:
		return fmt.Errorf("the image was made on %s, this is %s: %w", was.Machine, now.Machine, errs.ErrHost)
	case was.PageSize != now.PageSize:
		return fmt.Errorf("the image has pages of %d bytes, this host of %d: %w", was.PageSize, now.PageSize, errs.ErrHost)
	case !bytes.Equal(was.VdsoDigest, now.VdsoDigest):
		return fmt.Errorf("the image was made under kernel %s, whose vdso is not that of %s here, and programs keep pointers into it: %w",
			was.KernelRelease, now.KernelRelease, errs.ErrHost)
	}
	if now.MonotonicNs < was.MonotonicNs {
		log.Warn("this host's monotonic clock is behind the image's: programs that wait for a point of it wait longer",
			slog.Uint64("image_ns", was.MonotonicNs), slog.Uint64("host_ns", now.MonotonicNs))
	}
	return checkHugePool(mem.HugePool(img.MMs), hugePoolDir)
}

// hugePoolDir is where the kernel tells of its pool of 2 MiB pages.
const hugePoolDir = "/sys/kernel/mm/hugepages/hugepages-2048kB"

// checkHugePool refuses an image that needs more huge pages than the host has to
// give: those that are free and not promised to a mapping, and those that it may
// make beyond its pool.
func checkHugePool(need uint64, dir string) error {
	if need == 0 {
		return nil
	}
	n := map[string]uint64{}
	for _, name := range []string{"free_hugepages", "resv_hugepages", "nr_overcommit_hugepages", "surplus_hugepages"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return fmt.Errorf("the image needs %d huge pages of 2 MiB: %w: %w", need, errs.ErrHost, err)
		}
		if n[name], err = strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64); err != nil {
			return fmt.Errorf("%s: %w", filepath.Join(dir, name), err)
		}
	}
	more := n["nr_overcommit_hugepages"] - min(n["nr_overcommit_hugepages"], n["surplus_hugepages"])
	have := n["free_hugepages"] - min(n["free_hugepages"], n["resv_hugepages"]) + more
	if need > have {
		return fmt.Errorf("the image needs %d huge pages of 2 MiB, this host has %d to give: %w", need, have, errs.ErrHost)
	}
	return nil
}

// checkSum reads an archive through and goes back to its beginning.
func checkSum(f *os.File, t *blob.Tmpfs) error {
	sum := crc32.New(castagnoli)
	n, err := io.Copy(sum, f)
	if err != nil {
		return err
	}
	if uint64(n) != t.Size || sum.Sum32() != t.Crc {
		return fmt.Errorf("%s: %d bytes with checksum %08x, want %d with %08x: %w", t.Archive, n, sum.Sum32(), t.Size, t.Crc, errs.ErrCorrupt)
	}
	_, err = f.Seek(0, io.SeekStart)
	return err
}
