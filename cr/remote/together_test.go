package remote

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// TestTogether writes down who does what, when.
func TestTogether(t *testing.T) {
	odd := errors.New("odd")
	for _, tc := range []struct {
		name  string
		steps []int // of each piece
		most  int
		ready string // pieces that are ready from the start
		fails int    // in its last step; -1: none
		want  string
	}{
		{"nothing", nil, 2, "", -1, ""},
		{"one by one", []int{2, 1}, 1, "01", -1, "0 0 1"},
		{"two at a time", []int{3, 1, 1}, 2, "012", -1, "0 0 1 0 2"},
		{"in turns", []int{2, 3, 2}, 3, "012", -1, "0 0 1 1 2 1 2"},
		{"not ready", []int{2, 2}, 2, "0", -1, "0 0 1 1"},
		{"first not ready", []int{1, 1}, 2, "1", -1, "0 1"},
		{"fails", []int{3, 2, 5}, 2, "012", 1, "0 0 1 0 1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			lock(t)
			var did []string
			ready := func(i int) bool { return strings.Contains(tc.ready, fmt.Sprint(i)) }
			err := Together(len(tc.steps), tc.most, ready, func(i int, idle Idle) error {
				for step := range tc.steps[i] {
					if step > 0 {
						idle()
					}
					did = append(did, fmt.Sprint(i))
				}
				if i == tc.fails {
					return odd
				}
				return nil
			})
			if got := strings.Join(did, " "); got != tc.want {
				t.Errorf("did %s, want %s", got, tc.want)
			}
			if errors.Is(err, odd) != (tc.fails >= 0) {
				t.Errorf("error %v", err)
			}
		})
	}
}

// TestIdleTellsWhoIsLeft: who waits for others must hear when there were none: then
// nothing can have changed.
func TestIdleTellsWhoIsLeft(t *testing.T) {
	lock(t)
	var said []bool
	err := Together(2, 2, func(int) bool { return true }, func(i int, idle Idle) error {
		for range 2 {
			if more := idle(); i == 0 {
				said = append(said, more)
			}
		}
		if i == 0 {
			said = append(said, idle(), idle(), idle())
		}
		return nil
	})
	if want := []bool{false, true, true, true, false}; err != nil || !slices.Equal(said, want) {
		t.Errorf("%v, %v; want %v", said, err, want)
	}
}
