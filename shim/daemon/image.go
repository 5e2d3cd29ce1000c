package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// checkImage says whether all of an image is here, and what is in the way of its
// name.
func (t *Target) checkImage(ctx context.Context, want *imageRecord) (need bool, err error) {
	im, err := t.client.ImageService().Get(ctx, want.Name)
	if errdefs.IsNotFound(err) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("image %s: %w", want.Name, err)
	}
	if im.Target.Digest != want.Digest {
		return false, otherImage(want, im.Target.Digest)
	}
	err = t.complete(ctx, im.Target)
	return err != nil, nil
}

// otherImage is the error about an image whose name is taken: it is not
// overwritten, as others may be made of it.
func otherImage(want *imageRecord, have digest.Digest) error {
	return fmt.Errorf("image %s is another here, %s, than the container's, %s: remove it, or pull that one",
		want.Name, have, want.Digest)
}

// complete says what lacks of an image for this host's platform.
func (t *Target) complete(ctx context.Context, target v1.Descriptor) error {
	ok, _, _, missing, err := images.Check(ctx, t.client.ContentStore(), target, platforms.Default())
	if err != nil {
		return err
	}
	if !ok || len(missing) != 0 {
		return fmt.Errorf("%d of its parts are missing: %w", max(1, len(missing)), errdefs.ErrNotFound)
	}
	return nil
}

// ReadImage takes the image that WriteImage wrote, and unpacks it. It reads r to
// its end. Nothing gets a name but the image that the description promised.
func (t *Target) ReadImage(ctx context.Context, r io.Reader) error {
	if t.record == nil {
		return errNotAccepted
	}
	err := t.leased(t.named(ctx), func(ctx context.Context) error {
		if _, err := archive.ImportIndex(ctx, t.client.ContentStore(), r); err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			return err
		}
		return t.keepImage(ctx)
	})
	if err != nil {
		return fmt.Errorf("image %s: %w", t.record.Image.Name, err)
	}
	return nil
}

// keepImage names the image, once it is seen to be the promised one and whole.
// Without a name containerd collects what has come.
func (t *Target) keepImage(ctx context.Context) error {
	want := &t.record.Image
	info, err := t.client.ContentStore().Info(ctx, want.Digest)
	if errdefs.IsNotFound(err) {
		return fmt.Errorf("what came is not the promised %s: %w", want.Digest, err)
	}
	if err != nil {
		return err
	}
	if info.Size != want.Size {
		return fmt.Errorf("%s has %d bytes, promised were %d", want.Digest, info.Size, want.Size)
	}
	if err := t.complete(ctx, want.target()); err != nil {
		return err
	}
	if err := images.WalkNotEmpty(ctx, t.keepChildren(), want.target()); err != nil {
		return err
	}
	record := images.Image{Name: want.Name, Target: want.target()}
	im := client.NewImage(t.client, record)
	if err := t.checkLayers(ctx, im); err != nil {
		return err
	}
	if err := t.unpack(ctx, im); err != nil {
		return err
	}
	return t.nameImage(ctx, record)
}

// keepChildren labels what an image consists of, so that it lives as long as the
// image. What was left out for being another platform's is not looked for.
func (t *Target) keepChildren() images.Handler {
	store := t.client.ContentStore()
	children := func(ctx context.Context, desc v1.Descriptor) ([]v1.Descriptor, error) {
		list, err := images.Children(ctx, store, desc)
		if errdefs.IsNotFound(err) {
			return nil, images.ErrSkipDesc
		}
		return list, err
	}
	return images.SetChildrenLabels(store, images.FilterPlatforms(children, platforms.Default()))
}

func (t *Target) nameImage(ctx context.Context, im images.Image) error {
	_, err := t.client.ImageService().Create(ctx, im)
	if !errdefs.IsAlreadyExists(err) {
		return err
	}
	have, err := t.client.ImageService().Get(ctx, im.Name)
	if err == nil && have.Target.Digest != im.Target.Digest {
		err = otherImage(&t.record.Image, have.Target.Digest)
	}
	return err
}

// unpack makes the image's snapshots, unless they are there.
func (t *Target) unpack(ctx context.Context, im client.Image) error {
	ready, err := im.IsUnpacked(ctx, t.snapshotter)
	if err != nil || ready {
		return err
	}
	if err := im.Unpack(ctx, t.snapshotter); err != nil {
		return errors.Join(fmt.Errorf("unpack into %s", t.snapshotter), err)
	}
	return nil
}
