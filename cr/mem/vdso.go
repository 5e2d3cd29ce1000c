package mem

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// VdsoDigest is the sha256 of this kernel's vdso, read from our own address
// space. Programs keep pointers into it, so a restore wants the same one.
func VdsoDigest() ([]byte, error) {
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(maps)) {
		if !strings.HasSuffix(line, "[vdso]\n") {
			continue
		}
		var start, end int64
		if _, err := fmt.Sscanf(line, "%x-%x", &start, &end); err != nil {
			return nil, fmt.Errorf("/proc/self/maps: %q: %w", line, err)
		}
		mem, err := os.Open("/proc/self/mem")
		if err != nil {
			return nil, err
		}
		defer mem.Close() //nolint:errcheck // read only
		sum := sha256.New()
		if _, err := io.Copy(sum, io.NewSectionReader(mem, start, end-start)); err != nil {
			return nil, fmt.Errorf("vdso: %w", err)
		}
		return sum.Sum(nil), nil
	}
	return nil, errors.New("this process has no vdso")
}
