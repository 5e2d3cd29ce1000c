package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/image-spec/identity"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const (
	// defaultRuntime is the shim that restores stasis checkpoints.
	defaultRuntime = "io.containerd.stasis.v1"
	// markLabel has the mark of what a target makes.
	markLabel = "stasis.dev/migration"
)

// errNotAccepted means that a step comes before the one that it needs.
var errNotAccepted = errors.New("no description was accepted")

// TargetOptions say how a container is made.
type TargetOptions struct {
	Address
	Runtime     string // a shim that restores stasis checkpoints; empty: stasis's own
	Snapshotter string // empty: the source's
	LogDir      string // the container's output is appended to ID.log in it; empty: it goes to /dev/null

	// Mark is put on the container and its snapshot. With one, nothing else is ever
	// taken for the target's own, and so removed. It must be a label's value.
	Mark string
}

// Target is a container that is to come to a containerd. It is for one caller at
// a time.
type Target struct {
	*daemon
	opts TargetOptions

	id          string
	record      *record          // nil until one is accepted
	options     *options.Options // of the runtime
	snapshotter string
	mine        bool // without a mark: a container of this id is this target's
}

// OpenTarget connects to a containerd. The caller closes it.
func OpenTarget(ctx context.Context, o TargetOptions) (*Target, error) {
	if o.Runtime == "" {
		o.Runtime = defaultRuntime
	}
	if err := labels.Validate(markLabel, o.Mark); err != nil {
		return nil, fmt.Errorf("mark: %w", err)
	}
	if o.LogDir != "" {
		dir, err := filepath.Abs(o.LogDir)
		if err != nil {
			return nil, fmt.Errorf("directory for logs: %w", err)
		}
		o.LogDir = dir
	}
	d, err := connect(ctx, o.Address)
	if err != nil {
		return nil, err
	}
	return &Target{daemon: d, opts: o}, nil
}

// Close closes the connection. A container that was made stays.
func (t *Target) Close() error { return t.client.Close() }

// Attach makes Engine, Running and Remove work on the container of this id, which
// another process has made.
func (t *Target) Attach(id string) { t.id, t.mine = id, true }

// owns reports whether what has these labels, and the id, is this target's.
func (t *Target) owns(have map[string]string) bool {
	if t.opts.Mark != "" {
		return have[markLabel] == t.opts.Mark
	}
	return t.mine
}

// Accept looks at a description, and says all that stands in the way, joined. It
// makes nothing. needImage says that ReadImage has to come before Create.
func (t *Target) Accept(ctx context.Context, description []byte) (needImage bool, err error) {
	ctx = t.named(ctx)
	r, spec, err := decode(description)
	if err != nil {
		return false, err
	}
	snapshotter := t.opts.Snapshotter
	if snapshotter == "" {
		snapshotter = r.Snapshotter
	}
	opts, err := decodeOptions(r.Options)
	if err == nil {
		err = errors.Join(t.checkRuntime(ctx, opts), t.checkRoot(opts, r.ID))
	}
	needImage, imageErr := t.checkImage(ctx, &r.Image)
	err = errors.Join(err, t.checkFree(ctx, r.ID), t.checkSnapshotter(ctx, snapshotter, r.ID), imageErr,
		checkSpec(spec), checkSources(spec))
	if err != nil {
		return false, err
	}
	t.id, t.record, t.options, t.snapshotter, t.mine = r.ID, r, opts, snapshotter, false
	return needImage, nil
}

// checkFree looks for a container of the id.
func (t *Target) checkFree(ctx context.Context, id string) error {
	_, err := t.client.ContainerService().Get(ctx, id)
	if err == nil {
		return fmt.Errorf("container %s is there already, in namespace %s: remove it first", id, t.addr.Namespace)
	}
	if !errdefs.IsNotFound(err) {
		return fmt.Errorf("container %s: %w", id, err)
	}
	return nil
}

func (t *Target) checkRuntime(ctx context.Context, opts *options.Options) error {
	if _, err := t.client.RuntimeInfo(ctx, t.opts.Runtime, opts); err != nil && !errdefs.IsNotImplemented(err) {
		return fmt.Errorf("runtime %s: containerd does not start it, its shim must be on containerd's PATH: %w",
			t.opts.Runtime, err)
	}
	return nil
}

// checkRoot looks for what a runtime has left of an earlier container.
func (t *Target) checkRoot(opts *options.Options, id string) error {
	dir := filepath.Join(stateRoot(opts, t.addr.Namespace), id)
	if _, err := os.Lstat(dir); err == nil {
		return fmt.Errorf("the OCI runtime has a container %s already, in %s: delete it first", id, dir)
	}
	return nil
}

func (t *Target) checkSnapshotter(ctx context.Context, name, id string) error {
	filter := fmt.Sprintf("type==%s,id==%s", plugins.SnapshotPlugin, name)
	resp, err := t.client.IntrospectionService().Plugins(ctx, filter)
	if err != nil {
		return fmt.Errorf("snapshotter %s: %w", name, err)
	}
	if len(resp.Plugins) == 0 || resp.Plugins[0].InitErr != nil {
		return fmt.Errorf("containerd at %s has no snapshotter %s: set it up, or choose another", t.addr.Socket, name)
	}
	_, err = t.client.SnapshotService(name).Stat(ctx, id)
	if err == nil {
		return fmt.Errorf("snapshot %s of %s is there already: remove it first", id, name)
	}
	if !errdefs.IsNotFound(err) {
		return fmt.Errorf("snapshot %s of %s: %w", id, name, err)
	}
	return nil
}

// checkSources looks for what a spec takes from the host.
func checkSources(spec *specs.Spec) error {
	var all []error
	for _, m := range spec.Mounts {
		if !isBind(m) {
			continue
		}
		if !filepath.IsAbs(m.Source) {
			all = append(all, fmt.Errorf("mount %s: its source %q is in the container's bundle, which stays behind: "+
				"migrate needs an absolute path", m.Destination, m.Source))
		} else if _, err := os.Stat(m.Source); err != nil {
			all = append(all, fmt.Errorf("mount %s: make its source on this machine first: %w", m.Destination, err))
		}
	}
	if spec.Linux == nil {
		return errors.Join(all...)
	}
	for _, n := range spec.Linux.Namespaces {
		if n.Path == "" {
			continue
		}
		if _, err := os.Stat(n.Path); err != nil {
			all = append(all, fmt.Errorf("%s namespace: make it on this machine first: %w", n.Type, err))
		}
	}
	return errors.Join(all...)
}

// Create makes the container and its snapshot, or nothing. The image has to be
// there.
func (t *Target) Create(ctx context.Context) error {
	if t.record == nil {
		return errNotAccepted
	}
	if err := t.leased(t.named(ctx), t.create); err != nil {
		return fmt.Errorf("container %s: %w", t.id, err)
	}
	return nil
}

func (t *Target) create(ctx context.Context) (err error) {
	im, err := t.presentImage(ctx)
	if err != nil {
		return err
	}
	if err := t.unpack(ctx, im); err != nil {
		return err
	}
	spec, err := moveCgroup(t.record.Spec.Value, t.id, t.record.Namespace, t.addr.Namespace)
	if err != nil {
		return err
	}
	chain := t.record.Image.Chain.String()
	mark := snapshots.WithLabels(map[string]string{markLabel: t.opts.Mark})
	if _, err := t.client.SnapshotService(t.snapshotter).Prepare(ctx, t.id, chain, mark); err != nil {
		return fmt.Errorf("snapshot of image %s: %w", t.record.Image.Name, err)
	}
	if _, err := t.client.NewContainer(ctx, t.id, t.fill(spec)); err != nil {
		ctx, cancel := t.cleaning(ctx)
		defer cancel()
		return errors.Join(err, t.removeSnapshot(ctx, t.snapshotter, t.id))
	}
	t.mine = true
	return nil
}

// fill makes a container of the record.
func (t *Target) fill(spec []byte) client.NewContainerOpts {
	return func(_ context.Context, _ *client.Client, c *containers.Container) error {
		r := t.record
		c.Labels = t.labels()
		c.Image = r.Image.Name
		c.Snapshotter, c.SnapshotKey = t.snapshotter, t.id
		c.Runtime = containers.RuntimeInfo{Name: t.opts.Runtime}
		if r.Options != nil {
			c.Runtime.Options = r.Options
		}
		c.Spec = &object{TypeURL: r.Spec.TypeURL, Value: spec}
		c.Extensions = map[string]typeurl.Any{}
		for name, e := range r.Extensions {
			c.Extensions[name] = &e
		}
		return nil
	}
}

// labels are the record's, without the mark of an earlier migration.
func (t *Target) labels() map[string]string {
	all := maps.Clone(t.record.Labels)
	delete(all, markLabel)
	if t.opts.Mark == "" {
		return all
	}
	if all == nil {
		all = map[string]string{}
	}
	all[markLabel] = t.opts.Mark
	return all
}

// presentImage is the image of the record. It must have the same layers here.
func (t *Target) presentImage(ctx context.Context) (client.Image, error) {
	want := &t.record.Image
	im, err := t.client.GetImage(ctx, want.Name)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", want.Name, err)
	}
	if im.Target().Digest != want.Digest {
		return nil, otherImage(want, im.Target().Digest)
	}
	return im, t.checkLayers(ctx, im)
}

func (t *Target) checkLayers(ctx context.Context, im client.Image) error {
	layers, err := im.RootFS(ctx)
	if err != nil {
		return fmt.Errorf("image %s: %w", im.Name(), err)
	}
	if chain := identity.ChainID(layers); chain != t.record.Image.Chain {
		return fmt.Errorf("image %s: its layers for this machine's platform are %s, the container's are %s",
			im.Name(), chain, t.record.Image.Chain)
	}
	return nil
}

// ReadRootfs applies a layer that WriteRootfs wrote to the container's root
// directory. It reads r to its end. The container must not run.
func (t *Target) ReadRootfs(ctx context.Context, r io.Reader) error {
	if t.record == nil {
		return errNotAccepted
	}
	ctx = t.named(ctx)
	mounts, err := t.client.SnapshotService(t.snapshotter).Mounts(ctx, t.id)
	if err != nil {
		return fmt.Errorf("container %s: snapshot: %w", t.id, err)
	}
	err = mount.WithTempMount(ctx, mounts, func(root string) error { return apply(ctx, root, r) })
	if err != nil {
		return fmt.Errorf("container %s: files: %w", t.id, err)
	}
	return nil
}

// Engine says which container of the OCI runtime it will be, or is: the runtime's
// state root and the id. If it is neither accepted nor there, the root is the one
// that containers have whose options name none.
func (t *Target) Engine() (root, id string) {
	if t.options == nil && t.id != "" {
		t.options = t.keptOptions()
	}
	return stateRoot(t.options, t.addr.Namespace), t.id
}

// keptOptions are the options of a container that another process has made, or
// nil.
func (t *Target) keptOptions() *options.Options {
	ctx, cancel := context.WithTimeout(t.named(context.Background()), connectTime)
	defer cancel()
	c, err := t.client.ContainerService().Get(ctx, t.id)
	if err != nil || !t.owns(c.Labels) {
		return nil
	}
	o, err := decodeOptions(newObject(c.Runtime.Options))
	if err != nil {
		return nil
	}
	return o
}

// Start restores the container from the checkpoint in dir, and returns the host's
// pid of its init. A task that does not come to run is removed.
func (t *Target) Start(ctx context.Context, dir string) (pid int, err error) {
	if t.record == nil {
		return 0, errNotAccepted
	}
	pid, err = t.start(t.named(ctx), dir)
	if err != nil {
		return 0, fmt.Errorf("container %s: restore from %s: %w", t.id, dir, err)
	}
	return pid, nil
}

func (t *Target) start(ctx context.Context, dir string) (pid int, err error) {
	c, err := t.client.LoadContainer(ctx, t.id)
	if err != nil {
		return 0, err
	}
	output, err := t.output()
	if err != nil {
		return 0, err
	}
	task, err := c.NewTask(ctx, output, t.withOptions, client.WithRestoreImagePath(dir))
	if err == nil {
		err = task.Start(ctx)
	}
	if err != nil {
		ctx, cancel := t.cleaning(ctx)
		defer cancel()
		return 0, errors.Join(err, t.endTask(ctx, c))
	}
	return int(task.Pid()), nil
}

// withOptions gives the task the options in runc's own message: a restore adds to
// them, and containerd takes no other.
func (t *Target) withOptions(_ context.Context, _ *client.Client, info *client.TaskInfo) error {
	info.Options = t.options
	return nil
}

// output is where the container's output goes. The file is made here, so that
// only its owner can read it.
func (t *Target) output() (cio.Creator, error) {
	if t.opts.LogDir == "" {
		return cio.NullIO, nil
	}
	name := filepath.Join(t.opts.LogDir, t.id+".log")
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	if err := f.Close(); err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	return cio.LogFile(name), nil
}

// Running returns the host's pid of the container's init, or 0 if it does not
// run.
func (t *Target) Running(ctx context.Context) (pid int, err error) {
	if t.id == "" {
		return 0, errNotAccepted
	}
	pid, err = t.runningPID(t.named(ctx))
	if errdefs.IsNotFound(err) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("container %s: %w", t.id, err)
	}
	return pid, nil
}

func (t *Target) runningPID(ctx context.Context) (int, error) {
	c, err := t.client.LoadContainer(ctx, t.id)
	if err != nil {
		return 0, err
	}
	info, err := c.Info(ctx, client.WithoutRefreshedMetadata)
	if err != nil || !t.owns(info.Labels) {
		return 0, err
	}
	task, err := c.Task(ctx, nil)
	if err != nil {
		return 0, err
	}
	st, err := task.Status(ctx)
	if err != nil || st.Status != client.Running {
		return 0, err
	}
	return int(task.Pid()), nil
}

// Remove ends the container, and removes it and its snapshot. What is not this
// target's own stays. It doesn't end with ctx.
func (t *Target) Remove(ctx context.Context) error {
	if t.id == "" {
		return nil
	}
	ctx, cancel := t.cleaning(ctx)
	defer cancel()
	c, err := t.client.ContainerService().Get(ctx, t.id)
	switch {
	case errdefs.IsNotFound(err):
	case err != nil:
		return fmt.Errorf("container %s: %w", t.id, err)
	case !t.owns(c.Labels):
		return nil
	default:
		if err := t.remove(ctx, t.id); err != nil {
			return err
		}
	}
	return t.removeSnapshots(ctx)
}

// removeSnapshots removes the snapshot of a container that was never made, or
// whose removal was interrupted. Its snapshotter may not be known any more.
func (t *Target) removeSnapshots(ctx context.Context) error {
	names := []string{t.snapshotter}
	if t.snapshotter == "" {
		var err error
		if names, err = t.snapshotters(ctx); err != nil {
			return err
		}
	}
	var all []error
	for _, name := range names {
		info, err := t.client.SnapshotService(name).Stat(ctx, t.id)
		switch {
		case errdefs.IsNotFound(err):
		case err != nil:
			all = append(all, fmt.Errorf("snapshot %s of %s: %w", t.id, name, err))
		case t.owns(info.Labels) && info.Kind == snapshots.KindActive:
			all = append(all, t.removeSnapshot(ctx, name, t.id))
		}
	}
	return errors.Join(all...)
}

// snapshotters are those that work.
func (t *Target) snapshotters(ctx context.Context) ([]string, error) {
	resp, err := t.client.IntrospectionService().Plugins(ctx, "type=="+plugins.SnapshotPlugin.String())
	if err != nil {
		return nil, fmt.Errorf("containerd's snapshotters: %w", err)
	}
	var names []string
	for _, p := range resp.Plugins {
		if p.InitErr == nil {
			names = append(names, p.ID)
		}
	}
	return names, nil
}
