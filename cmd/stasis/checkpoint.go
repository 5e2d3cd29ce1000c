package main

import (
	"context"
	"errors"
	"path/filepath"

	"github.com/stasis-cr/stasis/cr"
	"github.com/stasis-cr/stasis/images"
)

// defaultImages is where runc looks if --image-path is not given.
const defaultImages = "checkpoint"

const checkpointAbout = `The checkpoint command saves the state of a running container as a directory
of files and ends the container, unless --leave-running is given. If anything
stands in the way the container runs on as if nothing had happened.`

// checkpointCommand is runc's verb with runc's flags.
func (a *app) checkpointCommand(g *global) *command {
	o := &cr.CheckpointOptions{}
	c := &command{
		name: "checkpoint", summary: "checkpoint a running container",
		args: "<container-id>", about: checkpointAbout,
	}
	c.options = append([]option{
		text(&o.ImageDir, "image-path", "directory for the checkpoint (default: ./checkpoint)"),
		text(&o.WorkDir, "work-path", "directory for logs (default: that of the checkpoint)"),
		on(&o.LeaveRunning, "leave-running", "let the container go on after the checkpoint"),
		on(&o.NoPrecopy, "no-precopy", "copy all memory while the container stands still, none before"),
		choice(&o.Compress, "compress", "how to store memory: none, s2 (default) or zstd", "none", "s2", "zstd"),
	}, policyOptions(o)...)
	c.options = append(c.options,
		accepted("link-remap", "save files that were deleted while open (always done)", false),
		accepted("tcp-skip-in-flight", "leave out TCP connections that are being set up", false),
		accepted("auto-dedup", "store a page only once (always done for shared pages)", false),
		manageCgroups(), emptyNS(),
		text(&o.ParentPath, "parent-path", "an earlier checkpoint, from --image-path, to save only what changed since"),
		on(&o.PreDump, "pre-dump", "let the container go on, and follow what it writes for a checkpoint with --parent-path"),
		refused("lazy-pages", "leave the memory to be fetched later", false, "memory is saved at once"),
		refused("page-server", "send the memory to ADDRESS:PORT", true,
			"memory is written to --image-path, and \"stasis page-server\" gives it to the machine that restores it"),
		accepted("status-fd", "a descriptor to report to when lazy pages are ready (never)", true),
	)
	c.run = func(ctx context.Context, args []string) (int, error) { return 0, a.checkpoint(ctx, g, o, args) }
	return c
}

// policyOptions are the flags that check shares with checkpoint.
func policyOptions(o *cr.CheckpointOptions) []option {
	return []option{
		on(&o.TCPEstablished, "tcp-established", "allow open TCP connections"),
		on(&o.ExtUnixSk, "ext-unix-sk", "allow unix sockets connected to outside the container"),
		on(&o.ShellJob, "shell-job", "allow a terminal that is shared with a shell outside"),
		on(&o.FileLocks, "file-locks", "allow file locks"),
	}
}

func manageCgroups() option {
	return oneOf("manage-cgroups-mode", "accepted: the runtime makes the cgroups", "soft", "full", "strict", "ignore")
}

func emptyNS() option {
	return oneOf("empty-ns", "accepted: the runtime makes the namespaces", "network")
}

// target fills in what every call of the engine about a container needs.
func (a *app) target(g *global, verb string, o *cr.CheckpointOptions, args []string) (err error) {
	if o.ID, err = oneID(verb, args); err != nil {
		return err
	}
	o.Root, o.RuntimeArgs = g.root, g.pass
	o.Runtime, err = a.findRuntime(g)
	return err
}

func (a *app) checkpoint(ctx context.Context, g *global, o *cr.CheckpointOptions, args []string) (err error) {
	if err := a.target(g, "checkpoint", o, args); err != nil {
		return err
	}
	if err := imagePaths(&o.ImageDir, &o.WorkDir); err != nil {
		return err
	}
	log, work, done := g.workLog(o.WorkDir, "dump.log")
	defer func() { err = errors.Join(err, done()) }()
	bar := newProgress(a.err)
	o.Log, o.Progress = log, bar.update
	stats, err := a.engine.checkpoint(ctx, *o)
	bar.end()
	if err != nil {
		return errors.Join(err, record(work, err))
	}
	err = errors.Join(images.Finish(o.ImageDir), images.WriteStats(o.WorkDir, images.DumpStats{
		Frozen: stats.Frozen, Total: stats.Total, Pages: uint64(stats.PagesBytes) / 4096,
	}))
	if err != nil { // the checkpoint is whole, and the container may be gone: no failure
		log.Warn("files for other tools: " + err.Error()) //nolint:sloglint // a line for people
	}
	return nil
}

// imagePaths makes both paths absolute, so that the engine may change its
// working directory.
func imagePaths(image, work *string) (err error) {
	if *image == "" {
		*image = defaultImages
	}
	if *work == "" {
		*work = *image
	}
	if *image, err = filepath.Abs(*image); err != nil {
		return err
	}
	*work, err = filepath.Abs(*work)
	return err
}
