package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sort"
	"time"
)

// instant is a point of CLOCK_REALTIME, which containers and we see alike: no time
// namespace changes it.
type instant int64

func clock() instant { return instant(time.Now().UnixNano()) }

// reading is one sample of integration/progs/c/load.c: how much work the container
// had done, and the longest wait since the reading before.
type reading struct {
	at      instant
	count   int64
	longest time.Duration
}

// samples are in the order of time.
type samples []reading

// ring is how many samples the file holds.
const ring = 1 << 18

var errSamples = errors.New("not a file of samples")

// readSamples reads what a container has noted so far. A program that notes
// nothing has none.
func readSamples(path string) (samples, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	s, err := parseSamples(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

func parseSamples(b []byte) (samples, error) {
	word := func(i int64) int64 { return int64(binary.NativeEndian.Uint64(b[i*8:])) }
	if len(b) != (3+3*ring)*8 {
		return nil, errSamples
	}
	n := word(0)
	s := make(samples, 0, min(n, ring-1))
	// The oldest of a full ring may just be written over.
	for i := max(0, n-ring+1); i < n; i++ {
		at := 3 + 3*(i%ring)
		s = append(s, reading{instant(word(at)), word(at + 1), time.Duration(word(at + 2))})
	}
	return s, nil
}

// after is the index of the first reading after t.
func (s samples) after(t instant) int {
	return sort.Search(len(s), func(i int) bool { return s[i].at > t })
}

// longest is the longest wait that ended between from and to, or with the first
// reading after that.
func (s samples) longest(from, to instant) time.Duration {
	var most time.Duration
	for i := s.after(from); i < len(s); i++ {
		most = max(most, s[i].longest)
		if s[i].at > to {
			break
		}
	}
	return most
}

// count is how much work was done by t.
func (s samples) count(t instant) float64 {
	i := s.after(t)
	if i == 0 || i == len(s) {
		return float64(s[min(i, len(s)-1)].count)
	}
	a, b := s[i-1], s[i]
	return float64(a.count) + float64(b.count-a.count)*float64(t-a.at)/float64(b.at-a.at)
}

// lost is how many per cent of the work that would have been done between from
// and to were not, judging by the time before.
func (s samples) lost(before, from, to instant) float64 {
	rate := (s.count(from) - s.count(before)) / float64(from-before)
	if rate == 0 {
		return 0
	}
	return 100 * (1 - (s.count(to)-s.count(from))/float64(to-from)/rate)
}
