package main

import "testing"

func TestParseCount(t *testing.T) {
	for in, want := range map[string]int{"": 0, "1\n2\n3\n": 3} {
		if got, err := parseCount(in); len(got) != want || err != nil {
			t.Errorf("%q: %v, %v; want %d numbers", in, got, err, want)
		}
	}
	for _, in := range []string{"2\n", "1\n1\n", "1\n3\n", "1\nx\n", "1\n2\n1\n"} {
		if got, err := parseCount(in); err == nil {
			t.Errorf("%q: %v, want an error", in, got)
		}
	}
}

func TestVerdict(t *testing.T) {
	for _, tc := range []struct {
		saved, continued int
		ok               bool
	}{{22, 23, true}, {22, 24, false}, {22, 1, false}, {22, 22, false}} {
		d := demo{saved: tc.saved, continued: tc.continued}
		if err := d.verdict(); (err == nil) != tc.ok {
			t.Errorf("%d then %d: %v", tc.saved, tc.continued, err)
		}
	}
}
