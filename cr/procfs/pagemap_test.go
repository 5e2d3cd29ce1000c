package procfs

import "testing"

func TestPageMapEntry(t *testing.T) {
	e := PageMapEntry(1<<63 | 1<<56 | 0x1234)
	if !e.Present() || !e.Exclusive() || e.Frame() != 0x1234 || e.Swapped() || e.File() || e.Guard() || e.UffdWP() || e.SoftDirty() {
		t.Errorf("a present page: %#x", e)
	}
	e = 1<<62 | 1<<61 | 1<<58 | 1<<57 | 1<<55 | 0x1234
	if e.Present() || e.Exclusive() || e.Frame() != 0 || !e.Swapped() || !e.File() || !e.Guard() || !e.UffdWP() || !e.SoftDirty() {
		t.Errorf("a page that is not present: %#x", e)
	}
}
