package procfs

import (
	"errors"
	"io/fs"
	"os/exec"
	"slices"
	"testing"
)

func TestParseChildren(t *testing.T) {
	checkParse(t, ParseChildren, []parseCase[[]int]{{"two", "2 4194304 ", []int{2, 4194304}}, {"none", "", nil}})
	checkRefused(t, ParseChildren, "x", "1 2 3-", "1,2")
}

func TestReadChildren(t *testing.T) {
	pid := linux(t)
	c := exec.CommandContext(t.Context(), "sleep", "60")
	if err := c.Start(); err != nil {
		missing(t, "sleep(1): "+err.Error())
	}
	defer func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	}()
	tids, err := ReadTasks(pid)
	if err != nil {
		t.Fatal(err)
	}
	var all []int
	for _, tid := range tids {
		kids, err := ReadChildren(pid, tid)
		if errors.Is(err, fs.ErrNotExist) {
			missing(t, "a kernel with CONFIG_PROC_CHILDREN")
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, kids...)
	}
	if !slices.Contains(all, c.Process.Pid) {
		t.Errorf("children %v lack %d", all, c.Process.Pid)
	}
}

func FuzzParseChildren(f *testing.F) { fuzz(f, ParseChildren, "2 3 ") }
