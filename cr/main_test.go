package cr

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/procfs"
)

// The variable asProgram has this test program be another one until its input
// ends: one that waits, one that works meanwhile, one that executes itself again and
// again, or one that holds back the process whose number follows.
const (
	asProgram = "STASIS_TEST_PROGRAM"
	waits     = "waits"
	works     = "works"
	executes  = "executes"
	untilTime = "STASIS_TEST_UNTIL" // with it: seconds since 1970
	holds     = "holds "
)

func TestMain(m *testing.M) {
	program := os.Getenv(asProgram)
	switch program {
	case "":
		os.Exit(m.Run())
	case waits:
	case works:
		go func() {
			for {
			}
		}()
	case executes:
		go execute() // on another thread than the first
		select {}
	default:
		pid, err := strconv.Atoi(program[len(holds):])
		if err != nil {
			os.Exit(1)
		}
		b := holdBack(context.Background(), pid)
		go func() {
			<-b.ended // it has nobody left to hold
			os.Exit(0)
		}()
	}
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		os.Exit(1)
	}
}

func execute() {
	runtime.LockOSThread()
	if end, err := strconv.ParseInt(os.Getenv(untilTime), 10, 64); err != nil || time.Now().Unix() > end {
		os.Exit(1) // whoever began it has gone
	}
	if unix.Exec("/proc/self/exe", os.Args, os.Environ()) != nil {
		os.Exit(1)
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("missing: root, to trace processes")
	}
	t.Skip("missing: root, to trace processes")
}

// start runs this test program as another until the test ends.
func start(t *testing.T, program string) *exec.Cmd {
	t.Helper()
	needRoot(t)
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), asProgram+"="+program)
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

// until waits until a thread of a process is in a state, and returns it.
func until(t *testing.T, pid int, state byte) (tid int) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		tids, err := threadsOf(pid)
		if err != nil {
			t.Fatal(err)
		}
		for _, tid := range tids {
			if st, err := procfs.ReadStat(tid); err == nil && st.State == state {
				return tid
			}
		}
	}
	t.Fatalf("no thread of process %d is in state %c", pid, state)
	return 0
}

// free waits until a process is held by nobody and one of its threads runs.
func free(t *testing.T, pid int) {
	t.Helper()
	until(t, pid, 'R')
	tids, err := threadsOf(pid)
	if err != nil {
		t.Fatal(err)
	}
	for _, tid := range tids {
		if st, err := procfs.ReadStatus(tid); !vanished(err) && (err != nil || st.TracerPID != 0) {
			t.Errorf("thread %d is traced by %d: %v", tid, st.TracerPID, err)
		}
	}
}

const traced = 't'

// startExecutes runs a process of several threads of which one executes its program
// again and again. It is no child of ours, as a parent's wait says something else.
func startExecutes(t *testing.T) (pid int) {
	t.Helper()
	needRoot(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-c", `"$0" >/dev/null 2>&1 & echo $!`, self)
	end := time.Now().Add(time.Minute).Unix()
	cmd.Env = append(os.Environ(), asProgram+"="+executes, untilTime+"="+strconv.FormatInt(end, 10))
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscan(string(out), &pid); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			t.Error(err)
		}
	})
	return pid
}
