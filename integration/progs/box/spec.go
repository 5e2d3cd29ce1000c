package box

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// DefaultCaps are the capabilities that engines give a container of root.
func DefaultCaps() []string {
	return []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
		"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL",
		"CAP_AUDIT_WRITE",
	}
}

// Config is what differs from box to box.
type Config struct {
	Args []string // the program and its arguments
	UID  uint32   // also the group
	Caps []string // of every set; none makes no_new_privs and the default seccomp profile
	Env  []string // besides PATH

	// HostNet leaves out the network namespace. CRIU locks the network of one
	// that has its own, for which it wants iptables.
	HostNet bool
}

// writeSpec writes config.json: what the runtime itself proposes, adapted.
func writeSpec(ctx context.Context, runtime, bundle string, c Config) error {
	if err := command(exec.CommandContext(ctx, runtime, "spec", "--bundle", bundle)); err != nil {
		return err
	}
	path := filepath.Join(bundle, "config.json")
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var s specs.Spec
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	adapt(&s, c)
	if b, err = json.MarshalIndent(&s, "", "\t"); err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o644)
}

func adapt(s *specs.Spec, c Config) {
	s.Root.Readonly = false
	s.Hostname = "box"
	p := s.Process
	p.Terminal = false
	p.Args = c.Args
	p.Env = append([]string{"PATH=/bin"}, c.Env...)
	p.User = specs.User{UID: c.UID, GID: c.UID}
	p.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 4096, Soft: 1024}}
	p.Capabilities = &specs.LinuxCapabilities{Bounding: c.Caps, Effective: c.Caps, Permitted: c.Caps}
	p.NoNewPrivileges = len(c.Caps) == 0
	if p.NoNewPrivileges {
		s.Linux.Seccomp = seccomp.DefaultProfile(s)
	}
	if c.HostNet {
		s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool {
			return n.Type == specs.NetworkNamespace
		})
	}
	s.Mounts = append(s.Mounts, specs.Mount{
		Destination: "/tmp", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "nodev", "mode=1777"},
	})
}
