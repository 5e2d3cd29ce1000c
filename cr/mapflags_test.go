package cr

import (
	"fmt"
	"os"
	"testing"
)

// TestReadAhead: each process's mappings are its own, also of one that nobody has
// thought of, and one that is gone is an error to who asks for it.
func TestReadAhead(t *testing.T) {
	gone := 1 << 30 // no pid is that large
	me, parent := os.Getpid(), os.Getppid()
	read := readAhead([]int{gone, me})
	for _, pid := range []int{me, parent} {
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		if err != nil {
			t.Fatal(err)
		}
		maps, err := read(pid)
		if err != nil || len(maps) == 0 || maps[0].Name != exe {
			t.Errorf("process %d: %d mappings, %v; want those of %s", pid, len(maps), err, exe)
		}
	}
	if _, err := read(gone); !vanished(err) {
		t.Errorf("a process that is gone: %v", err)
	}
	readAhead([]int{me}) // and nobody asks
}
