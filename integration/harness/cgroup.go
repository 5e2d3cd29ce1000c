package harness

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	modeEnv  = "STASIS_CGROUP"       // "v2" asks for the unified hierarchy
	readyEnv = "STASIS_CGROUP_READY" // set in the process that got its mount namespace

	cgroupRoot = "/sys/fs/cgroup"
)

// InCgroupMode sees to the cgroup version that STASIS_CGROUP asks for. Where it
// is "v2", the program runs again in a mount namespace of its own in which the
// unified hierarchy is the only one; done reports that this has happened, and
// code is how it ended. Controllers that version 1 holds are missing there.
func InCgroupMode() (code int, done bool) {
	switch {
	case os.Getenv(modeEnv) != "v2":
		return 0, false
	case os.Getenv(readyEnv) != "":
		if err := onlyCgroup2(); err != nil {
			fmt.Fprintln(os.Stderr, "cgroup v2:", err)
			return 1, true
		}
		return 0, false
	default:
		return again(), true
	}
}

// IsCgroup2 reports whether the unified hierarchy is what runtimes see.
func IsCgroup2() bool {
	var st unix.Statfs_t
	return unix.Statfs(cgroupRoot, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
}

func again() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), readyEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	// Go makes the mounts of a new namespace private by itself.
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return max(exit.ExitCode(), 1)
	default:
		fmt.Fprintln(os.Stderr, "cgroup v2:", err)
		return 1
	}
}

func onlyCgroup2() error {
	if IsCgroup2() {
		return nil
	}
	mounts, err := mountsBelow(cgroupRoot)
	if err != nil {
		return err
	}
	for _, m := range slices.Backward(mounts) { // the later may lie on the earlier
		if err := unix.Unmount(m, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", m, err)
		}
	}
	return unix.Mount("cgroup2", cgroupRoot, "cgroup2", 0, "")
}

// mountsBelow lists the mount points at and below dir, in the order of mounting.
func mountsBelow(dir string) ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var mounts []string
	s := bufio.NewScanner(f)
	for s.Scan() {
		fields := strings.Fields(s.Text())
		if len(fields) < 5 {
			continue
		}
		at := unescape(fields[4])
		if at == dir || strings.HasPrefix(at, dir+"/") {
			mounts = append(mounts, at)
		}
	}
	return mounts, s.Err()
}

// unescape undoes mountinfo's octal escapes (fs/proc_namespace.c).
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
