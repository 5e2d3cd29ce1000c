package namespaces

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/cr/procfs"
)

// describeUser records which of the host's ids the container's are. They come
// as ranges "inside outside count" (user_namespaces(7)).
func describeUser(_ context.Context, pid int, ns *blob.Namespaces) (err error) {
	if ns.UidMap, err = idMap(pid, "uid_map"); err != nil {
		return err
	}
	ns.GidMap, err = idMap(pid, "gid_map")
	return err
}

// checkUser refuses a container whose ids are others of the host's than they
// were: owners of files and tasks are recorded as the host numbers them.
func checkUser(ctx context.Context, pid int, was *blob.Namespaces) error {
	var now blob.Namespaces
	if err := describeUser(ctx, pid, &now); err != nil {
		return err
	}
	if now.GetUidMap() != was.GetUidMap() {
		return fmt.Errorf("user ids map as %q, in the image as %q: %w", now.GetUidMap(), was.GetUidMap(), errs.ErrHost)
	}
	if now.GetGidMap() != was.GetGidMap() {
		return fmt.Errorf("group ids map as %q, in the image as %q: %w", now.GetGidMap(), was.GetGidMap(), errs.ErrHost)
	}
	return nil
}

// idMap returns the ranges of one map, separated by commas, numbers by single
// spaces.
func idMap(pid int, file string) (string, error) {
	b, err := procfs.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
	if err != nil {
		return "", err
	}
	return oneLine(string(b)), nil
}

// actAsRoot makes the calling thread, which must be locked and is thrown away,
// create files as the container's root and keep every capability over them. In a
// file system that a user namespace mounted, an owner who has no id there can't
// make any (EOVERFLOW; fs/namei.c, fsuidgid_has_mapping). Threads can't join a
// user namespace, processes with one thread can (setns(2)).
func actAsRoot(pid int) error {
	uid, err := firstID(pid, "uid_map")
	if err != nil {
		return err
	}
	gid, err := firstID(pid, "gid_map")
	if err != nil || uid == unix.Geteuid() && gid == unix.Getegid() {
		return err
	}
	bits, err := unix.PrctlRetInt(unix.PR_GET_SECUREBITS, 0, 0, 0, 0)
	if err != nil {
		return fmt.Errorf("read the secure bits: %w", err)
	}
	// Without this, setfsuid(2) from 0 takes the capabilities over files away.
	if err := unix.Prctl(unix.PR_SET_SECUREBITS, uintptr(bits|secbitNoSetuidFixup), 0, 0, 0); err != nil {
		return fmt.Errorf("keep capabilities: %w", err)
	}
	if err := errors.Join(unix.Setfsgid(gid), unix.Setfsuid(uid)); err != nil {
		return fmt.Errorf("act as the container's root %d:%d: %w", uid, gid, err)
	}
	return nil
}

// secbitNoSetuidFixup is SECBIT_NO_SETUID_FIXUP of linux/securebits.h.
const secbitNoSetuidFixup = 1 << 2

// firstID returns our number of the lowest id in a map: the root's in the
// container, as OCI runtimes map it.
func firstID(pid int, file string) (int, error) {
	text, err := idMap(pid, file)
	if err != nil {
		return 0, err
	}
	var inside, outside int
	if _, err := fmt.Sscan(text, &inside, &outside); err != nil {
		return 0, fmt.Errorf("/proc/%d/%s: %q: %w", pid, file, text, errs.ErrUnsupported)
	}
	return outside, nil
}

// oneLine joins lines by commas and their words by single spaces: the kernel
// aligns such tables in columns.
func oneLine(text string) string {
	var lines []string
	for line := range strings.Lines(text) {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	return strings.Join(lines, ",")
}
