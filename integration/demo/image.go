package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// tasksType is the media type of what the shim wrote (containerd,
// core/images/mediatypes.go).
const tasksType = "application/vnd.containerd.container.criu.checkpoint.criu.tar"

// parts are the sizes of a checkpoint's parts in bytes.
type parts struct{ tasks, files int64 }

// readImage takes the sizes from the checkpoint's index and the last number
// from its layer of changed files.
func (d *demo) readImage(ctx context.Context) (parts, error) {
	index, err := d.index(ctx)
	if err != nil {
		return parts{}, err
	}
	var p parts
	for _, m := range index.Manifests {
		switch m.MediaType {
		case tasksType:
			p.tasks = m.Size
		case v1.MediaTypeImageLayerGzip:
			p.files = m.Size
			if err := d.readLayer(ctx, m); err != nil {
				return p, err
			}
		}
	}
	if p.tasks == 0 || p.files == 0 {
		return p, errors.New("the checkpoint lacks its tasks or its files")
	}
	return p, nil
}

func (d *demo) index(ctx context.Context) (v1.Index, error) {
	var index v1.Index
	list, err := d.a.Ctr(ctx, "images", "ls", "name=="+warmRef)
	if err != nil {
		return index, err
	}
	for f := range strings.FieldsSeq(list) {
		if strings.HasPrefix(f, "sha256:") {
			blob, err := d.a.Ctr(ctx, "content", "get", f)
			if err != nil {
				return index, err
			}
			return index, json.Unmarshal([]byte(blob), &index)
		}
	}
	return index, fmt.Errorf("no image %s", warmRef)
}

func (d *demo) readLayer(ctx context.Context, desc v1.Descriptor) error {
	blob, err := d.a.Ctr(ctx, "content", "get", desc.Digest.String())
	if err != nil {
		return err
	}
	zr, err := gzip.NewReader(bytes.NewReader([]byte(blob)))
	if err != nil {
		return err
	}
	tr := tar.NewReader(zr)
	for {
		h, err := tr.Next()
		if err != nil {
			return fmt.Errorf("no count among the changed files: %w", err)
		}
		if h.Name != "count" {
			continue
		}
		b, err := io.ReadAll(tr)
		if err != nil {
			return err
		}
		numbers, err := parseCount(string(b))
		d.saved = len(numbers)
		return err
	}
}
