package namespaces

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stasis-cr/stasis/cr/blob"
	"github.com/stasis-cr/stasis/cr/errs"
	"golang.org/x/sys/unix"
)

// Mounts lists the mounts that the task pid can reach from its root, in the
// order of /proc/pid/mountinfo: of two at one mountpoint the later covers the
// earlier.
func Mounts(pid int) (mounts []*blob.Mount, err error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	infos, err := mountinfo.GetMountsFromReader(f, nil)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name(), err)
	}
	for _, i := range infos {
		mounts = append(mounts, &blob.Mount{
			Mountpoint: i.Mountpoint,
			Fstype:     i.FSType,
			Root:       i.Root,
			Options:    i.Options + ";" + i.VFSOptions,
			Major:      uint32(i.Major),
			Minor:      uint32(i.Minor),
			Id:         int32(i.ID),
		})
	}
	return mounts, nil
}

func describeMounts(_ context.Context, pid int, ns *blob.Namespaces) (err error) {
	ns.Mounts, err = Mounts(pid)
	return err
}

// ExtraMounts names the mounts in now, each as an error, that the container's
// config does not explain: somebody made them after it was started, and a fresh
// container would lack them. The task pid tells where the config's destinations
// lead to in the container.
func ExtraMounts(pid int, now []*blob.Mount, spec *specs.Spec) []error {
	p, err := newMountPlan(pid, spec)
	if err != nil {
		return []error{err}
	}
	var refused []error
	for _, m := range now {
		if !p.explains(m) {
			refused = append(refused, fmt.Errorf("mount %s (%s) was made inside the container: can't be saved: %w",
				m.GetMountpoint(), m.GetFstype(), errs.ErrUnsupported))
		}
	}
	return refused
}

// mountPlan is what a config says about mounts, by mountpoint as mountinfo has it.
type mountPlan struct {
	allowed map[string]int      // mounts that may lie on each other at one place
	types   map[string][]string // kinds of file systems at a place, where the config names one
	trees   []string            // below these anything goes
}

// newMountPlan resolves the paths of spec in the container: a destination like
// /var/run/secrets may lead through a symbolic link of the image.
func newMountPlan(pid int, spec *specs.Spec) (*mountPlan, error) {
	root, err := openRoot(pid)
	if err != nil {
		return nil, err
	}
	defer root.Close() //nolint:errcheck // an O_PATH descriptor has nothing to flush
	p := &mountPlan{allowed: map[string]int{"/": 1}, types: map[string][]string{}}
	p.allow(root, "/dev/console") // the runtime's own, for a terminal
	for _, m := range spec.Mounts {
		at := p.allow(root, m.Destination)
		if slices.Contains(kernelTypes(), m.Type) {
			p.types[at] = append(p.types[at], m.Type)
		}
		// Version 1 controllers are mounted beneath their destination.
		if m.Type == "cgroup" || slices.Contains(m.Options, "rbind") {
			p.trees = append(p.trees, at)
		}
	}
	if spec.Linux == nil {
		return p, nil
	}
	for _, name := range slices.Concat(spec.Linux.MaskedPaths, spec.Linux.ReadonlyPaths, boundDevices(spec.Linux)) {
		p.allow(root, name)
	}
	return p, nil
}

// kernelTypes are the types whose name in a config is their name in mountinfo.
func kernelTypes() []string { return []string{"tmpfs", "proc", "sysfs", "devpts", "mqueue"} }

// boundDevices names the device nodes that a runtime binds from the host: in a
// user namespace mknod(2) is refused, and every device comes that way.
func boundDevices(l *specs.Linux) []string {
	private := func(ns specs.LinuxNamespace) bool { return ns.Type == specs.UserNamespace }
	if !slices.ContainsFunc(l.Namespaces, private) {
		return nil
	}
	// The OCI runtime specification's default devices, config-linux.md.
	names := []string{"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"}
	for _, d := range l.Devices {
		if !slices.Contains(names, d.Path) {
			names = append(names, d.Path)
		}
	}
	return names
}

// allow lets one more mount lie at a path of the config; it returns the path as
// mountinfo has it.
func (p *mountPlan) allow(root *os.File, name string) string {
	at, err := resolveIn(root, name)
	if err != nil {
		at = path.Clean("/" + name) // not there, so nothing is mounted on it
	}
	p.allowed[at]++
	return at
}

// explains reports whether the config accounts for a mount, and uses up one that
// it allowed there.
func (p *mountPlan) explains(m *blob.Mount) bool {
	at := m.GetMountpoint()
	if slices.ContainsFunc(p.trees, func(tree string) bool { return beneath(at, tree) }) {
		return true
	}
	if p.allowed[at] == 0 {
		return false
	}
	p.allowed[at]--
	types := p.types[at]
	return len(types) == 0 || slices.Contains(types, m.GetFstype())
}

// beneath reports whether name lies below dir, and is not dir itself.
func beneath(name, dir string) bool {
	return name != dir && strings.HasPrefix(name, strings.TrimSuffix(dir, "/")+"/")
}

// Missing names the mounts of an image, each as an error, that the new
// container lacks. What lies beneath /proc and /sys is the new kernel's: masked
// paths and controllers that it doesn't have need no mount.
func Missing(was, now []*blob.Mount) []error {
	have := make(map[string]bool)
	for _, m := range now {
		have[m.GetMountpoint()] = true
	}
	var missing []error
	for _, m := range was {
		at := m.GetMountpoint()
		if !have[at] && !kernels(at, was) {
			missing = append(missing, fmt.Errorf("mount %s (%s) of the image is not in this container: %w",
				at, m.GetFstype(), errs.ErrHost))
		}
	}
	return missing
}

// kernels reports whether a mountpoint lies in the kernel's own trees, /proc or
// /sys, where the OCI runtime mounts what fits the kernel it runs on.
func kernels(at string, mounts []*blob.Mount) bool {
	return slices.ContainsFunc(mounts, func(m *blob.Mount) bool {
		return (m.GetFstype() == "proc" || m.GetFstype() == "sysfs") && beneath(at, m.GetMountpoint())
	})
}

// openRoot opens the root directory of the task pid to resolve names in, not to
// read.
func openRoot(pid int) (*os.File, error) {
	return os.OpenFile(fmt.Sprintf("/proc/%d/root", pid), unix.O_PATH|unix.O_DIRECTORY, 0)
}

// openIn opens a name that a container knows, from outside and without leaving
// the root of the container.
func openIn(root *os.File, name string, flags int) (*os.File, error) {
	fd, err := unix.Openat2(int(root.Fd()), name, &unix.OpenHow{
		Flags:   uint64(flags) | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// resolveIn returns the path that a name in the container leads to, as the
// container's mountinfo has it. The kernel writes a path up to the root of its
// mount namespace, so that a task whose root is elsewhere gets its own root cut.
func resolveIn(root *os.File, name string) (string, error) {
	f, err := openIn(root, name, unix.O_PATH)
	if err != nil {
		return "", err
	}
	defer f.Close() //nolint:errcheck // an O_PATH descriptor has nothing to flush
	at, err := os.Readlink(fdPath(f))
	if err != nil {
		return "", err
	}
	top, err := os.Readlink(fdPath(root))
	if err != nil {
		return "", err
	}
	return path.Clean("/" + strings.TrimPrefix(at, top)), nil
}

// fdPath names what a descriptor of ours is open on, also if that is O_PATH or
// has no name any more.
func fdPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }
