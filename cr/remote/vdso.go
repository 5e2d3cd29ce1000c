package remote

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	"github.com/stasis-cr/stasis/cr/errs"
)

// Range is a range of addresses of a task, the end exclusive.
type Range struct{ Start, End Addr }

// FindVDSO finds the vdso of a task, by its thread id in our pid namespace. A
// task that unmapped it or never had one gives [errs.ErrUnsupported].
func FindVDSO(tid int) (Range, error) {
	text, err := readProc(tid, "maps")
	if err != nil {
		return Range{}, err
	}
	for line := range bytes.Lines(text) {
		if !bytes.HasSuffix(line, []byte(" [vdso]\n")) {
			continue
		}
		span, rest, _ := strings.Cut(string(line), " ")
		if !strings.HasPrefix(rest, "r-xp") {
			break
		}
		return parseRange(span)
	}
	return Range{}, fmt.Errorf("task %d has no vdso: %w", tid, errs.ErrUnsupported)
}

func parseRange(s string) (Range, error) {
	from, to, _ := strings.Cut(s, "-")
	start, err := strconv.ParseUint(from, 16, 64)
	if err != nil {
		return Range{}, fmt.Errorf("mapping %q: %w", s, err)
	}
	end, err := strconv.ParseUint(to, 16, 64)
	if err != nil {
		return Range{}, fmt.Errorf("mapping %q: %w", s, err)
	}
	return Range{Start: Addr(start), End: Addr(end)}, nil
}

// slots is what the end of the vdso looks like: from its end downwards slots
// that dead visits left behind, slots that are free, then the vdso's own bytes.
type slots struct {
	free  []Addr
	stale []staleSlot
}

// most slots that are looked for: the padding of one page.
const mostSlots = 8

// findSlots reads the end of the vdso. A slot is free if it is all zero; what
// lies below the first that is neither free nor ours belongs to the vdso.
func findSlots(pid int, vdso Range) (s slots, err error) {
	size := min(uint64(vdso.End-vdso.Start), mostSlots*slotSize)
	b := make([]byte, size)
	if err := readTask(pid, vdso.End-Addr(size), b); err != nil {
		return s, err
	}
	for ; len(b) >= slotSize; b = b[:len(b)-slotSize] {
		slot := b[len(b)-slotSize:]
		at := vdso.End - Addr(size) + Addr(len(b)-slotSize)
		switch {
		case bytes.Equal(slot, make([]byte, slotSize)):
			s.free = append(s.free, at)
		case bytes.HasPrefix(slot, []byte(slotMagic)):
			tid := int(binary.LittleEndian.Uint32(slot[slotTID:]))
			s.stale = append(s.stale, staleSlot{at: at, tid: tid})
		default:
			return s, nil
		}
	}
	return s, nil
}
