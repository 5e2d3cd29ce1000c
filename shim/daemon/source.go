package daemon

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/image-spec/identity"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stasis-cr/stasis/cr"
)

const (
	// restartLabel has containerd start a container again when it ends
	// (core/runtime/restart).
	restartLabel = "containerd.io/restart.status"
	// criLabel is on the containers of pods.
	criLabel = "io.cri-containerd.kind"
)

// Source is a running container of a containerd. It is for one caller at a time.
type Source struct {
	*daemon
	id      string
	created time.Time // tells it from a later one of the same id
	record  *record
	key     string // of its snapshot
	engine  cr.CheckpointOptions
	sent    *tree // what WriteRootfs has written so far
}

// OpenSource finds a running container. It returns an error if there is none, and
// if it is of a kind that can't be made anew elsewhere. The caller closes it.
func OpenSource(ctx context.Context, a Address, id string) (*Source, error) {
	d, err := connect(ctx, a)
	if err != nil {
		return nil, err
	}
	s := &Source{daemon: d, id: id, sent: &tree{}}
	if err := s.open(d.named(ctx)); err != nil {
		return nil, errors.Join(fmt.Errorf("container %s: %w", id, err), d.client.Close())
	}
	return s, nil
}

// Close closes the connection. The container is left as it is.
func (s *Source) Close() error { return s.client.Close() }

func (s *Source) open(ctx context.Context) error {
	c, err := s.client.LoadContainer(ctx, s.id)
	if errdefs.IsNotFound(err) {
		return fmt.Errorf("containerd at %s has none of this id in its namespace %s: %w",
			s.addr.Socket, s.addr.Namespace, err)
	}
	if err != nil {
		return err
	}
	info, err := c.Info(ctx)
	if err != nil {
		return err
	}
	if err := checkKind(&info); err != nil {
		return err
	}
	if err := checkTask(ctx, c); err != nil {
		return err
	}
	s.created, s.key = info.CreatedAt, info.SnapshotKey
	if err := s.describe(ctx, c, &info); err != nil {
		return err
	}
	return s.findEngine()
}

// checkKind refuses what could not be made anew of a description.
func checkKind(c *containers.Container) error {
	switch {
	case c.SandboxID != "" || c.Labels[criLabel] != "":
		return errors.New("a container of a pod: its kubelet would not know it elsewhere; migrate needs one that stands alone")
	case c.Image == "":
		return errors.New("it was made without an image: migrate needs one, to make it of over there")
	case c.SnapshotKey == "" || c.Snapshotter == "":
		return errors.New("its root directory is no snapshot (ctr run --rootfs): migrate needs one of an image")
	case c.Labels[restartLabel] == "running":
		return fmt.Errorf("its label %s has containerd start it anew when it ends here; remove the label first", restartLabel)
	case c.Spec == nil:
		return errors.New("it has no spec")
	default:
		return nil
	}
}

func checkTask(ctx context.Context, c client.Container) error {
	task, err := c.Task(ctx, nil)
	if errdefs.IsNotFound(err) {
		return fmt.Errorf("it has no running task: %w", err)
	}
	if err != nil {
		return err
	}
	st, err := task.Status(ctx)
	if err != nil {
		return fmt.Errorf("its task: %w", err)
	}
	switch st.Status {
	case client.Running:
		return nil
	case client.Paused, client.Pausing:
		return errors.New("it is paused: resume it first")
	default:
		return fmt.Errorf("it has no running task: it is %s", st.Status)
	}
}

// describe makes the record.
func (s *Source) describe(ctx context.Context, c client.Container, info *containers.Container) error {
	im, err := s.image(ctx, c, info)
	if err != nil {
		return err
	}
	s.record = &record{
		Version:     recordVersion,
		ID:          s.id,
		Namespace:   s.addr.Namespace,
		Labels:      info.Labels,
		Image:       *im,
		Snapshotter: info.Snapshotter,
		Runtime:     info.Runtime.Name,
		Options:     newObject(info.Runtime.Options),
		Spec:        *newObject(info.Spec),
		Extensions:  map[string]object{},
	}
	for name, e := range info.Extensions {
		if o := newObject(e); o != nil {
			s.record.Extensions[name] = *o
		}
	}
	spec, err := s.record.check()
	if err != nil {
		return err
	}
	return checkSpec(spec)
}

// checkSpec refuses what the other side can't give.
func checkSpec(spec *specs.Spec) error {
	if spec.Process != nil && spec.Process.Terminal {
		return errors.New("it has a terminal, whose other end stays on this machine: migrate needs one without")
	}
	if spec.Linux != nil && len(spec.Linux.UIDMappings)+len(spec.Linux.GIDMappings) != 0 {
		return errors.New("it has a user namespace, whose files have other owners on each machine: migrate needs one without")
	}
	return nil
}

// image is the image that the container's snapshot is made of. Its name may be
// another image's by now.
func (s *Source) image(ctx context.Context, c client.Container, info *containers.Container) (*imageRecord, error) {
	im, err := c.Image(ctx)
	if err != nil {
		return nil, fmt.Errorf("image %s: pull it again: %w", info.Image, err)
	}
	layers, err := im.RootFS(ctx)
	if err != nil {
		return nil, fmt.Errorf("image %s: pull it again: %w", info.Image, err)
	}
	snap, err := s.client.SnapshotService(info.Snapshotter).Stat(ctx, info.SnapshotKey)
	if err != nil {
		return nil, fmt.Errorf("snapshot %s: %w", info.SnapshotKey, err)
	}
	chain := identity.ChainID(layers)
	if snap.Parent != chain.String() {
		return nil, fmt.Errorf("image %s is not the one that it was made of: snapshot %s is on %q, the image is %s",
			info.Image, info.SnapshotKey, snap.Parent, chain)
	}
	t := im.Target()
	return &imageRecord{Name: im.Name(), MediaType: t.MediaType, Digest: t.Digest, Size: t.Size, Chain: chain}, nil
}

func (s *Source) findEngine() error {
	o, err := decodeOptions(s.record.Options)
	if err != nil {
		return err
	}
	root := stateRoot(o, s.addr.Namespace)
	if err := checkState(root, s.id); err != nil {
		return err
	}
	runtime, err := findRuntime(o.GetBinaryName())
	if err != nil {
		return err
	}
	s.engine = cr.CheckpointOptions{ID: s.id, Root: root, Runtime: runtime}
	return nil
}

// Describe returns the container's record. It is as of [OpenSource].
func (s *Source) Describe(context.Context) ([]byte, error) {
	b, err := s.record.encode()
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", s.id, err)
	}
	return b, nil
}

// Engine says which container of which OCI runtime it is.
func (s *Source) Engine() cr.CheckpointOptions { return s.engine }

// WriteImage writes the container's image as an OCI layout in a tar archive, as
// far as it is of this host's platform.
func (s *Source) WriteImage(ctx context.Context, w io.Writer) error {
	im := s.record.Image
	err := s.client.Export(s.named(ctx), w,
		archive.WithManifest(im.target(), im.Name),
		archive.WithPlatform(platforms.Default()),
		archive.WithSkipMissing(s.client.ContentStore()),
		archive.WithSkipDockerManifest())
	if err != nil {
		return fmt.Errorf("image %s: %w", im.Name, err)
	}
	return nil
}

// WriteRootfs writes an OCI layer with what has changed in the container's root
// directory: at first all that differs from the image, then what has changed
// since the call before. Sockets are left out, and holes become zeros. The
// container may run: what changes meanwhile is written whole by the next call.
// After an error the other side's files are of no use.
func (s *Source) WriteRootfs(ctx context.Context, w io.Writer) error {
	if err := s.writeRootfs(s.named(ctx), w); err != nil {
		return fmt.Errorf("container %s: files: %w", s.id, err)
	}
	return nil
}

func (s *Source) writeRootfs(ctx context.Context, w io.Writer) error {
	mounts, err := s.client.SnapshotService(s.record.Snapshotter).Mounts(ctx, s.key)
	if err != nil {
		return fmt.Errorf("snapshot %s: %w", s.key, err)
	}
	if upper, ok := upperDir(mounts); ok {
		return s.sent.write(ctx, w, upper, "", true)
	}
	view := func(base string) error {
		return mount.WithReadonlyTempMount(ctx, mounts, func(root string) error {
			return s.sent.write(ctx, w, root, base, false)
		})
	}
	if s.sent.root != nil {
		return view("")
	}
	return s.leased(ctx, func(ctx context.Context) error { return s.withParent(ctx, view) })
}

// withParent calls f with a directory that has the image's files.
func (s *Source) withParent(ctx context.Context, f func(dir string) error) (err error) {
	key := "stasis-" + rand.Text()
	mounts, err := s.client.SnapshotService(s.record.Snapshotter).View(ctx, key, s.record.Image.Chain.String())
	if err != nil {
		return fmt.Errorf("view of image %s: %w", s.record.Image.Name, err)
	}
	defer func() {
		ctx, cancel := s.cleaning(ctx)
		defer cancel()
		err = errors.Join(err, s.removeSnapshot(ctx, s.record.Snapshotter, key))
	}()
	return mount.WithReadonlyTempMount(ctx, mounts, f)
}

// upperDir returns the directory where an overlay keeps all that differs from its
// lower layers. There is none if the mounts are anything else, or if the overlay
// may keep a file's name or attributes without what belongs to them.
func upperDir(mounts []mount.Mount) (string, bool) {
	if len(mounts) != 1 || mounts[0].Type != "overlay" {
		return "", false
	}
	upper := ""
	for _, o := range mounts[0].Options {
		key, value, _ := strings.Cut(o, "=")
		switch {
		case key == "upperdir":
			upper = value
		case (key == "redirect_dir" || key == "metacopy") && value == "on":
			return "", false
		case key == "uidmap" || key == "gidmap":
			return "", false
		}
	}
	if upper == "" || overlayDefault(mounts[0].Options, "redirect_dir") || overlayDefault(mounts[0].Options, "metacopy") {
		return "", false
	}
	return upper, true
}

// overlayDefault reports whether the kernel switches a feature of overlays on
// that the options don't speak of.
func overlayDefault(opts []string, feature string) bool {
	if slices.ContainsFunc(opts, func(o string) bool { return strings.HasPrefix(o, feature+"=") }) {
		return false
	}
	b, err := os.ReadFile("/sys/module/overlay/parameters/" + feature)
	return err == nil && strings.TrimSpace(string(b)) == "Y"
}

// Remove removes the container and its snapshot, unless there is another of its
// id by now. It doesn't end with ctx.
func (s *Source) Remove(ctx context.Context) error {
	ctx, cancel := s.cleaning(ctx)
	defer cancel()
	c, err := s.client.ContainerService().Get(ctx, s.id)
	switch {
	case errdefs.IsNotFound(err):
		return s.removeSnapshot(ctx, s.record.Snapshotter, s.key)
	case err != nil:
		return fmt.Errorf("container %s: %w", s.id, err)
	case !c.CreatedAt.Equal(s.created):
		return fmt.Errorf("container %s is another by now, made at %s: it is left alone", s.id, c.CreatedAt)
	}
	return s.remove(ctx, s.id)
}
