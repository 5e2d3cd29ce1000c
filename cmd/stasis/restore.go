package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stasis-cr/stasis/cr"
)

const restoreAbout = `The restore command makes a container from a bundle, with the host's own OCI
runtime, and goes on in it where the checkpoint stopped. Namespaces, mounts,
cgroups, security labels and seccomp are those of the bundle.`

// restoreFlags are the flags that need more than to be stored.
type restoreFlags struct {
	cr.RestoreOptions
	profile, mountContext string
}

// restoreCommand is runc's verb with runc's flags, and those that conmon and
// podman send to other runtimes.
func (a *app) restoreCommand(g *global) *command {
	o := &restoreFlags{}
	c := &command{
		name: "restore", summary: "restore a container from a checkpoint",
		args: "<container-id>", about: restoreAbout,
	}
	c.options = append(o.remoteOptions(), []option{
		text(&o.ConsoleSocket, "console-socket", "a unix socket that receives the container's terminal"),
		text(&o.ImageDir, "image-path", "directory of the checkpoint (default: ./checkpoint)"),
		text(&o.WorkDir, "work-path", "directory for logs (default: that of the checkpoint)"),
		accepted("tcp-established", "accepted: the checkpoint says what was allowed", false),
		accepted("ext-unix-sk", "accepted: the checkpoint says what was allowed", false),
		accepted("shell-job", "accepted: the checkpoint says what was allowed", false),
		accepted("file-locks", "accepted: the checkpoint says what was allowed", false),
		manageCgroups(),
		with("b", text(&o.Bundle, "bundle", "directory of the bundle (default: the current one)")),
		with("d", on(&o.Detach, "detach", "return when the container runs")),
		text(&o.PidFile, "pid-file", "file for the pid of the container's init"),
		on(&o.NoSubreaper, "no-subreaper", "do not adopt orphans of the container"),
		on(&o.NoPivot, "no-pivot", "do not use pivot_root"),
		emptyNS(),
		accepted("auto-dedup", "accepted: nothing to do at restore", false),
		on(&o.LazyPages, "lazy-pages", "let the container go on at once, and fill its memory while it runs"),
		text(&o.profile, "lsm-profile", "the security label that the bundle must ask for, as TYPE:NAME"),
		text(&o.mountContext, "lsm-mount-context", "the mount label that the bundle must ask for"),
		hidden(accepted("parent-path", "", true)),
		hidden(accepted("no-new-keyring", "", false)),
		hidden(accepted("tcp-close", "", false)),
		hidden(accepted("network-lock", "", true)),
	}...)
	c.run = func(ctx context.Context, args []string) (int, error) { return a.restore(ctx, g, o, args) }
	return c
}

func (a *app) restore(ctx context.Context, g *global, o *restoreFlags, args []string) (status int, err error) {
	if o.ID, err = oneID("restore", args); err != nil {
		return 0, err
	}
	o.Root, o.RuntimeArgs = g.root, g.pass
	if o.Runtime, err = a.findRuntime(g); err != nil {
		return 0, err
	}
	if err := errors.Join(o.paths(), o.remote()); err != nil {
		return 0, err
	}
	if err := o.checkBundle(); err != nil {
		return 0, err
	}
	log, work, done := g.workLog(o.WorkDir, "restore.log")
	defer func() { err = errors.Join(err, done()) }()
	bar := newProgress(a.err)
	o.Log, o.Progress = log, bar.update
	stop := func() {}
	if !o.Detach {
		stop = forward(&o.RestoreOptions)
	}
	status, err = a.engine.restore(ctx, o.RestoreOptions)
	stop()
	bar.end()
	if err != nil {
		return 0, errors.Join(err, record(work, err))
	}
	if !o.Detach {
		remove(&o.RestoreOptions)
	}
	return status, nil
}

// paths makes every path absolute.
func (o *restoreFlags) paths() error {
	if err := imagePaths(&o.ImageDir, &o.WorkDir); err != nil {
		return err
	}
	if o.Bundle == "" {
		o.Bundle = "."
	}
	for _, p := range []*string{&o.Bundle, &o.PidFile, &o.ConsoleSocket} {
		if *p == "" {
			continue
		}
		abs, err := filepath.Abs(*p)
		if err != nil {
			return err
		}
		*p = abs
	}
	return nil
}

// lazyAnnotation of a bundle stands for --lazy-pages where the caller is a shim:
// containerd passes no flag of ours.
const lazyAnnotation = "stasis.dev/lazy-pages"

// checkBundle reads what the bundle has to say about the flags. A bundle that
// can't be read is the runtime's to complain of, unless a flag is about it.
func (o *restoreFlags) checkBundle() error {
	labels := o.profile != "" || o.mountContext != ""
	spec, err := readSpec(o.Bundle)
	if err != nil {
		if labels {
			return err
		}
		return nil
	}
	if spec.Annotations[lazyAnnotation] == "true" {
		o.LazyPages = true
	}
	if labels {
		return o.checkLabels(spec)
	}
	return nil
}

func readSpec(bundle string) (*specs.Spec, error) {
	b, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil {
		return nil, fmt.Errorf("bundle: %w", err)
	}
	spec := &specs.Spec{}
	if err := json.Unmarshal(b, spec); err != nil {
		return nil, fmt.Errorf("bundle %s: config.json: %w", bundle, err)
	}
	return spec, nil
}

// checkLabels compares --lsm-profile and --lsm-mount-context with the bundle.
// The runtime applies the bundle's labels and no others: a flag that says the
// same is met, any other can't be.
func (o *restoreFlags) checkLabels(spec *specs.Spec) error {
	if o.profile != "" {
		if err := checkProfile(o.profile, spec.Process); err != nil {
			return err
		}
	}
	var label string
	if spec.Linux != nil {
		label = spec.Linux.MountLabel
	}
	if o.mountContext != "" && o.mountContext != label {
		return fmt.Errorf("--lsm-mount-context %s: the bundle asks for %q, and the bundle decides",
			o.mountContext, label)
	}
	return nil
}

func checkProfile(profile string, p *specs.Process) error {
	kind, name, ok := strings.Cut(profile, ":")
	if !ok || name == "" {
		return fmt.Errorf("invalid --lsm-profile %q: want TYPE:NAME", profile)
	}
	if p == nil {
		p = &specs.Process{}
	}
	labels := map[string]string{"apparmor": p.ApparmorProfile, "selinux": p.SelinuxLabel}
	label, ok := labels[kind]
	if !ok {
		return fmt.Errorf("invalid --lsm-profile %q: want apparmor or selinux", profile)
	}
	if label != name {
		return fmt.Errorf("--lsm-profile %s: the bundle asks for %q, and the bundle decides", profile, label)
	}
	return nil
}
