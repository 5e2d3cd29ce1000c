package fault

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// TestMain lets the test binary pass two points as a process of its own: the
// variable is read only once.
func TestMain(m *testing.M) {
	if os.Getenv("STASIS_FAULT_TEST") == "" {
		os.Exit(m.Run())
	}
	for _, name := range []string{"first", "second"} {
		err := Point(name)
		var injected *Injected
		fmt.Println(name, err, errors.As(err, &injected))
	}
}

func pass(t *testing.T, armed string) (string, error) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), "STASIS_FAULT_TEST=1", Env+"="+armed)
	out, err := cmd.Output()
	return string(out), err
}

func TestPoint(t *testing.T) {
	const quiet = "first <nil> false\nsecond <nil> false\n"
	for armed, want := range map[string]string{
		"":             quiet,
		"third=error":  quiet,
		"firs=error":   quiet,
		"second=error": "first <nil> false\nsecond fault injected at \"second\" true\n",
		"first":        "first fault injected at \"first\" true\nsecond <nil> false\n",
	} {
		out, err := pass(t, armed)
		if err != nil || out != want {
			t.Errorf("%s: %q, %v; want %q", armed, out, err, want)
		}
	}
}

func TestPointKills(t *testing.T) {
	out, err := pass(t, "second=kill")
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("ended with %v", err)
	}
	if !strings.HasPrefix(out, "first <nil>") || strings.Contains(out, "second") {
		t.Errorf("said %q", out)
	}
}
