package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The two ways to name the shim to containerd.
const (
	RuntimeName = "io.containerd.stasis.v1" // found as containerd-shim-stasis-v1 on containerd's PATH
	RuncName    = "io.containerd.runc.v2"   // with the shim's path as the runtime path
)

// startTime bounds containerd's start, stopTime its end; both take a second at
// most on an idle machine.
const (
	startTime = 30 * time.Second
	stopTime  = 10 * time.Second
)

// Config says how to run a containerd.
type Config struct {
	Dir   string // an empty directory for everything; short, as sockets are in it
	Bins  Bins
	Runc  string   // the host runtime that stasis is to use; "" leaves it the choice
	Env   []string // added to containerd's environment, and so to the shims'
	Name  string   // containerd namespace; "" takes the name of Dir
	Debug bool     // log at debug level
	// AsRunc makes the shim what containerd finds for io.containerd.runc.v2, the
	// one name that gets all of containerd's checkpoint options.
	AsRunc bool
}

// Containerd is a running containerd of our own.
type Containerd struct {
	Namespace string // for ctr, and the parent cgroup and runtime state of its containers
	Address   string // socket
	LogFile   string
	Temp      string // containerd's temporary directory, where checkpoints pass through

	cfg    Config
	ctr    string
	daemon *exec.Cmd
	done   chan error
}

// StartContainerd starts a containerd without CRI and waits until it answers.
// The caller must Stop it.
func StartContainerd(ctx context.Context, cfg Config) (*Containerd, error) {
	name := cfg.Name
	if name == "" {
		name = filepath.Base(cfg.Dir)
	}
	ctr, err := Tool("ctr")
	if err != nil {
		return nil, err
	}
	c := &Containerd{
		Namespace: name,
		Address:   filepath.Join(cfg.Dir, "state", "c.sock"),
		LogFile:   filepath.Join(cfg.Dir, "containerd.log"),
		Temp:      filepath.Join(cfg.Dir, "tmp"),
		cfg:       cfg,
		ctr:       ctr,
		done:      make(chan error, 1),
	}
	if err := c.start(); err != nil {
		return nil, err
	}
	err = Poll(ctx, startTime, "containerd", func() (bool, error) {
		_, err := c.Ctr(ctx, "version")
		return err == nil, err
	})
	if err != nil {
		return nil, errors.Join(err, c.Stop(ctx), c.logTail())
	}
	return c, nil
}

func (c *Containerd) start() error {
	bin, err := Tool("containerd")
	if err != nil {
		return err
	}
	if err := os.Mkdir(c.Temp, 0o700); err != nil {
		return err
	}
	if err := os.Mkdir(c.shadow(), 0o755); err != nil {
		return err
	}
	if c.cfg.AsRunc {
		if err := os.Symlink(c.cfg.Bins.Shim, filepath.Join(c.shadow(), "containerd-shim-runc-v2")); err != nil {
			return err
		}
	}
	config := filepath.Join(c.cfg.Dir, "config.toml")
	if err := os.WriteFile(config, []byte(c.toml()), 0o600); err != nil {
		return err
	}
	log, err := os.OpenFile(c.LogFile, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	c.daemon = exec.Command(bin, "--config", config, "--address", c.Address)
	c.daemon.Env = c.environ(bin)
	c.daemon.Stdout, c.daemon.Stderr = log, log
	if err := c.daemon.Start(); err != nil {
		return err
	}
	go func() { c.done <- c.daemon.Wait() }()
	return nil
}

// toml is the configuration. What is switched off would reach outside Dir, or
// needs a host that is set up for it.
func (c *Containerd) toml() string {
	level := "info"
	if c.cfg.Debug {
		level = "debug"
	}
	return fmt.Sprintf(`version = 3
root = %q
state = %q
disabled_plugins = [
  "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime", "io.containerd.cri.v1.images",
  "io.containerd.podsandbox.controller.v1.podsandbox", "io.containerd.nri.v1.nri",
  "io.containerd.internal.v1.opt", "io.containerd.internal.v1.tracing",
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.erofs", "io.containerd.differ.v1.erofs", "io.containerd.mount-handler.v1.erofs",
  "io.containerd.image-verifier.v1.bindir",
]
[debug]
  level = %q
`, filepath.Join(c.cfg.Dir, "root"), filepath.Join(c.cfg.Dir, "state"), level)
}

// shadow is the directory that comes first on containerd's PATH.
func (c *Containerd) shadow() string { return filepath.Join(c.cfg.Dir, "bin") }

func (c *Containerd) environ(bin string) []string {
	path := c.shadow() + ":" + c.cfg.Bins.Dir + ":" + filepath.Dir(bin) + ":" + os.Getenv("PATH")
	env := append(os.Environ(), "PATH="+path, "TMPDIR="+c.Temp, "XDG_RUNTIME_DIR=")
	if c.cfg.Runc != "" {
		env = append(env, "STASIS_RUNTIME="+c.cfg.Runc)
	}
	return append(env, c.cfg.Env...)
}

// Ctr runs ctr on this containerd, in its namespace.
func (c *Containerd) Ctr(ctx context.Context, args ...string) (string, error) {
	out, _, err := c.CtrOutput(ctx, args...)
	return out, err
}

// CtrOutput is Ctr, with ctr's warnings.
func (c *Containerd) CtrOutput(ctx context.Context, args ...string) (out, diag string, err error) {
	return Output(ctx, os.Environ(), c.ctr, c.ctrArgs(args)...)
}

// CtrCommand is ctr with arguments, for the caller to run.
func (c *Containerd) CtrCommand(args ...string) *exec.Cmd {
	return exec.Command(c.ctr, c.ctrArgs(args)...)
}

func (c *Containerd) ctrArgs(args []string) []string {
	return append([]string{"-a", c.Address, "-n", c.Namespace}, args...)
}

// Import makes an image and imports it.
func (c *Containerd) Import(ctx context.Context, im Image) error {
	name := filepath.Join(c.Temp, "import.tar")
	if err := im.WriteArchive(name); err != nil {
		return err
	}
	defer os.Remove(name)
	_, err := c.Ctr(ctx, "images", "import", name)
	return err
}

// RunArgs are the arguments of ctr run that this host's cgroups need.
func RunArgs() []string {
	if IsCgroup2() {
		return []string{"--cpu-shares", "0"} // the cpu controller may be with version 1
	}
	return nil
}

// ExportArgs and ImportArgs are the beginnings of the commands that move a
// checkpoint which ctr made. It is an index of things that are no manifests:
// without these flags ctr looks for an image inside. Without --local the archive
// goes through containerd's transfer service, whose stream ended early once in
// a while on a busy machine (containerd 2.3.4).
func ExportArgs() []string {
	return []string{"images", "export", "--local", "--skip-manifest-json", "--all-platforms"}
}

// ImportArgs is described at [ExportArgs].
func ImportArgs() []string {
	return []string{"images", "import", "--local", "--no-unpack", "--all-platforms"}
}

// Exec runs a command in a container and returns what it printed.
func (c *Containerd) Exec(ctx context.Context, id string, args ...string) (string, error) {
	exec := fmt.Sprintf("e%d", time.Now().UnixNano())
	return c.Ctr(ctx, append([]string{"tasks", "exec", "--exec-id", exec, id}, args...)...)
}

// Ask is Exec of a command that always prints something and may run twice: ctr
// loses the output of a short one once in a while, when it is over before ctr
// has opened its end of the FIFO.
func (c *Containerd) Ask(ctx context.Context, id string, args ...string) (out string, err error) {
	err = Poll(ctx, stopTime, "answer of "+args[0], func() (bool, error) {
		var err error
		out, err = c.Exec(ctx, id, args...)
		return err == nil && out != "", err
	})
	return out, err
}

// Status returns a task's status as ctr prints it, or "" without a task.
func (c *Containerd) Status(ctx context.Context, id string) (string, error) {
	out, err := c.Ctr(ctx, "tasks", "ls")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == id {
			return f[2], nil
		}
	}
	return "", nil
}

// Remove kills a container's task, if there is one, and deletes both.
func (c *Containerd) Remove(ctx context.Context, id string) error {
	status, err := c.Status(ctx, id)
	if err != nil {
		return err
	}
	if status == "RUNNING" || status == "PAUSED" {
		if _, err := c.Ctr(ctx, "tasks", "kill", "--signal", "KILL", id); err != nil {
			return err
		}
		err := Poll(ctx, stopTime, "end of "+id, func() (bool, error) {
			s, err := c.Status(ctx, id)
			return s == "STOPPED", err
		})
		if err != nil {
			return err
		}
	}
	if status != "" {
		if _, err := c.Ctr(ctx, "tasks", "delete", "--force", id); err != nil {
			return err
		}
	}
	_, err = c.Ctr(ctx, "containers", "delete", id)
	return err
}

// Stop removes every container, ends containerd and its shims, and takes away
// whatever they left outside Dir, which stays for the caller to remove. Nothing
// of this stops at the first error.
func (c *Containerd) Stop(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx)
	errs := []error{c.removeAll(ctx), c.endDaemon(), c.endShims(ctx), unmountBelow(c.cfg.Dir), c.removeOutside()}
	return errors.Join(errs...)
}

func (c *Containerd) removeAll(ctx context.Context) error {
	out, err := c.Ctr(ctx, "containers", "ls", "-q")
	if err != nil {
		return err
	}
	var errs []error
	for id := range strings.FieldsSeq(out) {
		errs = append(errs, c.Remove(ctx, id))
	}
	return errors.Join(errs...)
}

func (c *Containerd) endDaemon() error {
	if err := c.daemon.Process.Signal(unix.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-c.done:
		return nil
	case <-time.After(stopTime):
		return errors.Join(errors.New("containerd did not end"), c.daemon.Process.Kill())
	}
}

// logTail is containerd's last words, as an error to join.
func (c *Containerd) logTail() error {
	b, err := os.ReadFile(c.LogFile)
	if err != nil {
		return err
	}
	lines := bytes.Split(bytes.TrimSpace(b), []byte("\n"))
	return fmt.Errorf("containerd's log ends: %s", bytes.Join(lines[max(0, len(lines)-5):], []byte("\n")))
}
