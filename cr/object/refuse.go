package object

import (
	"strings"

	"golang.org/x/sys/unix"
)

// anonymous says why each class of anonymous inode stays behind. The keys are
// the names that the kernel gives them (anon_inode_getfile).
func anonymous(class string) string {
	switch class {
	case "inotify":
		return "an inotify instance: the inodes that it watches have no names"
	case "[fanotify]":
		return "a fanotify instance: it watches file systems of the host"
	case "[io_uring]":
		return "an io_uring: requests in flight and registered buffers can't be read out; " +
			"many programs have a setting to do without"
	case "[perf_event]":
		return "a perf event: its counters belong to this machine's hardware"
	case "[userfaultfd]":
		return "a userfaultfd: faults that wait for an answer can't be read out"
	case "[pidfd]":
		return "a pidfd"
	case "bpf-map", "bpf-prog", "bpf_link", "[bpf-map]", "[bpf-prog]", "[bpf_link]", "btf":
		return "a BPF object: it lives in the kernel"
	case "seccomp notify":
		return "a seccomp notification descriptor: calls that wait for an answer can't be read out"
	case "[fscontext]", "[mount]":
		return "a half-made mount"
	}
	return "an object of the kernel (" + class + ") that can't be described from outside"
}

// refuse says what d is and why it can't be saved.
func refuse(_ *Capture, d *Desc) error {
	if class, ok := strings.CutPrefix(d.Link, "anon_inode:"); ok {
		return unsupported("%s", anonymous(class))
	}
	switch {
	case strings.HasPrefix(d.Link, "pidfd:"):
		return unsupported("a pidfd")
	case d.is(unix.S_IFSOCK):
		return unsupported("a socket of the %s family", family(d.domain))
	case strings.HasPrefix(d.Link, "/dev/zero (deleted)"), strings.HasPrefix(d.Link, "/SYSV"):
		return unsupported("shared memory %s opened as a file", d.Link)
	case d.is(unix.S_IFCHR) && (isPTS(d.stat.Rdev_major) || d.stat.Rdev_major == 5 || d.stat.Rdev_major == 4):
		return unsupported("terminal %s, which is not the container's own", d.Link)
	case d.is(unix.S_IFCHR), d.is(unix.S_IFBLK):
		return unsupported("device %s (%d:%d): its driver's state can't be read out",
			d.Link, d.stat.Rdev_major, d.stat.Rdev_minor)
	case strings.Contains(d.Link, ":["):
		return unsupported("namespace %s held by a descriptor", d.Link)
	}
	return unsupported("%s of mode %#o", d.Link, d.stat.Mode)
}

// family names a socket family of socket(2).
func family(domain int) string {
	switch domain {
	case unix.AF_UNIX:
		return "unix"
	case unix.AF_INET:
		return "IPv4"
	case unix.AF_INET6:
		return "IPv6"
	case unix.AF_NETLINK:
		return "netlink"
	case unix.AF_PACKET:
		return "packet"
	case unix.AF_VSOCK:
		return "vsock"
	case unix.AF_ALG:
		return "kernel crypto"
	case unix.AF_BLUETOOTH:
		return "bluetooth"
	case unix.AF_CAN:
		return "CAN"
	case unix.AF_XDP:
		return "XDP"
	}
	return "unknown"
}
