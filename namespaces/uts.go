package namespaces

import (
	"context"
	"fmt"

	"github.com/stasis-cr/stasis/cr/blob"
	"golang.org/x/sys/unix"
)

// describeUTS records the names of a private UTS namespace; the host's own are
// none of the container's state.
func describeUTS(_ context.Context, pid int, ns *blob.Namespaces) error {
	if private, err := Private(pid, "uts"); err != nil || !private {
		return err
	}
	return within(pid, nsKind{"uts", unix.CLONE_NEWUTS}, func() (err error) {
		ns.Hostname, ns.Domainname, err = utsNames()
		return err
	})
}

// restoreUTS gives a private UTS namespace the names that were recorded. A
// container that shares the host's keeps the host's.
func restoreUTS(_ context.Context, pid int, ns *blob.Namespaces) error {
	private, err := Private(pid, "uts")
	if err != nil || !private || ns.GetHostname() == "" {
		return err
	}
	return within(pid, nsKind{"uts", unix.CLONE_NEWUTS}, func() error {
		host, domain, err := utsNames()
		if err != nil {
			return err
		}
		if host != ns.GetHostname() {
			if err := unix.Sethostname([]byte(ns.GetHostname())); err != nil {
				return fmt.Errorf("host name %q: %w", ns.GetHostname(), err)
			}
		}
		if domain != ns.GetDomainname() {
			if err := unix.Setdomainname([]byte(ns.GetDomainname())); err != nil {
				return fmt.Errorf("domain name %q: %w", ns.GetDomainname(), err)
			}
		}
		return nil
	})
}

// utsNames returns the names in the calling thread's UTS namespace.
func utsNames() (host, domain string, err error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", "", fmt.Errorf("uname: %w", err)
	}
	return unix.ByteSliceToString(u.Nodename[:]), unix.ByteSliceToString(u.Domainname[:]), nil
}
