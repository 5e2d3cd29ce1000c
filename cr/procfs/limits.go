package procfs

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
)

// Limit is one resource limit of a process.
type Limit struct {
	Resource   int    // RLIMIT_*, as prlimit(2) takes it
	Soft, Hard uint64 // Unlimited, or in the resource's unit
}

// Unlimited is RLIM_INFINITY.
const Unlimited = math.MaxUint64

// limitNames are the names in the order of the kernel's numbers, which x86, arm64
// and most others share (fs/proc/base.c, lnames; asm-generic/resource.h).
const limitNames = "cpu time|file size|data size|stack size|core file size|resident set|processes|" +
	"open files|locked memory|address space|file locks|pending signals|msgqueue size|nice priority|realtime priority|realtime timeout"

// limitNameWidth is the width of the first column, its blank included.
const limitNameWidth = 26

// ParseLimits parses /proc/PID/limits: all sixteen, in the order of their numbers.
func ParseLimits(r io.Reader) ([]Limit, error) {
	names := strings.Split(limitNames, "|")
	var out []Limit
	head := true
	err := eachLine(r, func(line []byte) bool {
		if head {
			head = false
			return bytes.HasPrefix(line, []byte("Limit "))
		}
		if len(out) == len(names) || len(line) < limitNameWidth {
			return false
		}
		l := Limit{Resource: len(out)}
		soft, rest := cutWord(line[limitNameWidth:])
		hard, _ := cutWord(rest)
		out = append(out, l)
		name := strings.TrimPrefix(string(bytes.TrimRight(line[:limitNameWidth], " ")), "Max ")
		return name == names[l.Resource] && limitValue(soft, &out[l.Resource].Soft) && limitValue(hard, &out[l.Resource].Hard)
	})
	if err != nil {
		return nil, err
	}
	if len(out) != len(names) {
		return nil, fmt.Errorf("%d of %d limits: %w", len(out), len(names), ErrFormat)
	}
	return out, nil
}

func limitValue(b []byte, to *uint64) bool {
	if string(b) == "unlimited" {
		*to = Unlimited
		return true
	}
	return dec(b, to)
}

// Limits reads the limits of a process.
func (root FS) Limits(pid int) ([]Limit, error) {
	return read(root, ParseLimits, strconv.Itoa(pid), "limits")
}

// ReadLimits reads /proc/PID/limits. Unlike prlimit(2) it needs no privilege
// over a process of another user.
func ReadLimits(pid int) ([]Limit, error) { return Proc.Limits(pid) }
