package sys

import (
	"testing"
)

func TestParseUFFDMsg(t *testing.T) {
	msg := func(event byte, words ...byte) []byte {
		b := make([]byte, UFFDMsgSize)
		b[0] = event
		for i, w := range words {
			b[8+8*i] = w
		}
		return b
	}
	for name, tc := range map[string]struct {
		in   []byte
		want UFFDMsg
	}{
		"write": {msg(UFFDPageFault, 1, 7), UFFDMsg{Event: UFFDPageFault, Write: true, Address: 7}},
		"read":  {msg(UFFDPageFault, 0, 7), UFFDMsg{Event: UFFDPageFault, Address: 7}},
		"fork":  {msg(UFFDFork, 9), UFFDMsg{Event: UFFDFork, FD: 9}},
		"remap": {msg(UFFDRemap, 1, 2, 3), UFFDMsg{Event: UFFDRemap, Start: 1, To: 2, Size: 3}},
		"gone":  {msg(UFFDRemove, 1, 2), UFFDMsg{Event: UFFDRemove, Start: 1, End: 2}},
		"unmap": {msg(UFFDUnmap, 1, 2), UFFDMsg{Event: UFFDUnmap, Start: 1, End: 2}},
	} {
		if got, err := ParseUFFDMsg(tc.in); err != nil || got != tc.want {
			t.Errorf("%s: %+v, %v; want %+v", name, got, err, tc.want)
		}
	}
	for name, in := range map[string][]byte{"unknown": msg(0x20), "short": make([]byte, UFFDMsgSize-1)} {
		if _, err := ParseUFFDMsg(in); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func FuzzParseUFFDMsg(f *testing.F) {
	f.Add(make([]byte, UFFDMsgSize))
	f.Fuzz(func(_ *testing.T, b []byte) {
		_, err := ParseUFFDMsg(b)
		_ = err
	})
}
