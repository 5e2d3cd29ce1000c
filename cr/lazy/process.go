package lazy

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/fault"
)

// The verbs that a program which restores lazily starts itself with.
const (
	guardVerb  = "lazy-guard"
	serverVerb = "lazy-server"
	adoptVerb  = "lazy-adopt" // a guard that is started by its server
)

// linkFD and peerFD are the descriptors that these processes begin with.
const (
	linkFD = 3
	peerFD = 4 // lazy-adopt: the server's pidfd
)

// Main is what a program that restores lazily calls first, with its arguments:
// it runs guards and servers, which are started as the same program with a verb
// of our own. ours is false for any other verb. openLog opens restore.log in a
// directory, to be appended to.
func Main(args []string, openLog func(dir string) *slog.Logger) (status int, ours bool) {
	if len(args) != 2 || !slices.Contains([]string{guardVerb, serverVerb, adoptVerb}, args[1]) {
		return 0, false
	}
	// Whoever ends one of us by a signal to a group ends both, and with us the
	// last references: only SIGKILL may.
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-999"), 0) //nolint:errcheck // a wish
	unix.CloseOnExec(linkFD)
	up := link{os.NewFile(linkFD, "lazy link")}
	switch args[1] {
	case serverVerb:
		return serve(up, openLog), true
	case adoptVerb:
		unix.CloseOnExec(peerFD)
		return adopted(up, os.NewFile(peerFD, "pidfd of the server"), openLog), true
	}
	return newGuard(openLog).run(up), true
}

// start starts this program again with a verb. It has no other descriptors than
// files, from linkFD on. A fault that is armed strikes only the first server.
func start(verb string, again bool, files ...*os.File) (*exec.Cmd, error) {
	if err := unix.CloseRange(linkFD, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return nil, fmt.Errorf("close_range: %w", err)
	}
	cmd := exec.Command("/proc/self/exe", verb) //nolint:noctx // it outlives whoever starts it
	cmd.Args[0] = "stasis"
	cmd.Dir = "/"
	cmd.ExtraFiles = files
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Env = os.Environ()
	if again {
		cmd.Env = slices.DeleteFunc(cmd.Env, func(s string) bool { return strings.HasPrefix(s, fault.Env+"=") })
	}
	// Another thread: the caller's own children are those that it traces.
	started := make(chan error)
	go func() { started <- cmd.Start() }()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", verb, err)
	}
	return cmd, nil
}

// exitOf waits for a process that start started.
func exitOf(cmd *exec.Cmd) int {
	err := cmd.Wait()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		return -1
	}
	return cmd.ProcessState.ExitCode()
}
