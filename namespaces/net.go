package namespaces

import (
	"context"
	"errors"
	"fmt"

	"github.com/stasis-cr/stasis/cr/blob"
	"golang.org/x/sys/unix"
)

// loopback is the one interface that no runtime or network plugin has to make,
// and the one that they leave as they found it: down, in a new namespace.
const loopback = "lo"

// describeNet records whether the network namespace is the container's own and
// whether its loopback is up. Other interfaces, their addresses and routes are
// made by whoever prepares a container's network.
func describeNet(_ context.Context, pid int, ns *blob.Namespaces) (err error) {
	if ns.PrivateNet, err = Private(pid, "net"); err != nil || !ns.GetPrivateNet() {
		return err
	}
	return within(pid, nsKind{"net", unix.CLONE_NEWNET}, func() (err error) {
		flags, err := interfaceFlags(loopback)
		ns.LoopbackUp = flags&unix.IFF_UP != 0
		return err
	})
}

// restoreNet brings the loopback of a private network namespace up if it was.
func restoreNet(_ context.Context, pid int, ns *blob.Namespaces) error {
	private, err := Private(pid, "net")
	if err != nil || !private || !ns.GetLoopbackUp() {
		return err
	}
	return within(pid, nsKind{"net", unix.CLONE_NEWNET}, func() error { return bringUp(loopback) })
}

func interfaceFlags(name string) (flags uint16, err error) {
	err = withInterface(name, func(fd int, req *unix.Ifreq) error {
		if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, req); err != nil {
			return err
		}
		flags = req.Uint16()
		return nil
	})
	return flags, err
}

func bringUp(name string) error {
	return withInterface(name, func(fd int, req *unix.Ifreq) error {
		if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, req); err != nil {
			return err
		}
		req.SetUint16(req.Uint16() | unix.IFF_UP)
		return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
	})
}

// withInterface runs f with a socket of the thread's network namespace and a
// request that names an interface. The socket's family does not matter to
// netdevice(7), and AF_UNIX is the one that is always there.
func withInterface(name string, f func(fd int, req *unix.Ifreq) error) (err error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("interface %s: socket: %w", name, err)
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	req, err := unix.NewIfreq(name)
	if err == nil {
		err = f(fd, req)
	}
	if err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	return nil
}
