package cr

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestKeeperOfOtherName: a process that has the number of a keeper that is gone is
// left alone, and the keeper itself is ended, with its record or without.
func TestKeeperOfOtherName(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	id, err := idOf(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "kept.json")
	other := &keptRecord{Keeper: procID{id.PID, id.Start + 1}}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := other.take(&keptSpace{}); !errors.Is(err, unix.ESRCH) {
		t.Errorf("take: %v", err)
	}
	if err := other.end(path); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the record stays: %v", err)
	}
	if st, err := idOf(id.PID); err != nil || st != id || ended(id.PID) {
		t.Fatalf("the other process was ended: %v", err)
	}
	if err := (&keptRecord{Keeper: id}).end(path); err != nil {
		t.Errorf("without a record: %v", err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the keeper was not ended")
	}
}

// ended says whether a child of ours has ended and waits to be reaped.
func ended(pid int) bool {
	var info unix.Siginfo
	err := unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	return err != nil || info.Signo != 0
}
