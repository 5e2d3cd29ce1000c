package cr

import (
	"math"
	"testing"
	"time"
)

func TestSampleTime(t *testing.T) {
	for _, tc := range []struct {
		size int64
		want time.Duration
	}{
		{precopyLeast, time.Millisecond},
		{1 << 30, 9 * time.Millisecond},
		{8 << 30, precopySample},
		{math.MaxInt64, precopySample},
	} {
		if got := sampleTime(tc.size); got != tc.want {
			t.Errorf("%d bytes: %v, want %v", tc.size, got, tc.want)
		}
	}
}
