package harness

import (
	"archive/tar"
	"bytes"
	_ "crypto/sha256" // for go-digest
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"slices"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// File is one entry of an image. Exactly one of Body, Source and Link may be
// set; an entry with none and a directory's mode is a directory.
type File struct {
	Path   string // absolute
	Mode   os.FileMode
	Body   []byte
	Source string // a regular file of the host to copy
	Link   string // the target of a symbolic link
}

// Image is a container image of one layer.
type Image struct {
	Ref   string // with registry and tag, as containerd keeps it
	Files []File
	Cmd   []string
	Env   []string
	User  string
}

// nameAnnotation gives an image of a layout its full name in containerd
// (core/images/annotations.go).
const nameAnnotation = "io.containerd.image.name"

// WriteArchive writes the image to the file at name: an OCI layout in a tar
// archive, as ctr image import reads it.
func (im Image) WriteArchive(name string) (err error) {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if e := f.Close(); err == nil {
			err = e
		}
	}()
	return im.write(f)
}

func (im Image) write(w io.Writer) error {
	layer, err := layerTar(im.Files)
	if err != nil {
		return fmt.Errorf("image %s: %w", im.Ref, err)
	}
	a := archive{tw: tar.NewWriter(w)}
	layerDesc := a.blob(v1.MediaTypeImageLayer, layer)
	config := a.json(v1.MediaTypeImageConfig, v1.Image{
		Platform: v1.Platform{Architecture: runtime.GOARCH, OS: runtime.GOOS},
		Config:   v1.ImageConfig{User: im.User, Env: im.Env, Cmd: im.Cmd},
		RootFS:   v1.RootFS{Type: "layers", DiffIDs: []digest.Digest{layerDesc.Digest}},
	})
	manifest := a.json(v1.MediaTypeImageManifest, v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: v1.MediaTypeImageManifest,
		Config:    config,
		Layers:    []v1.Descriptor{layerDesc},
	})
	manifest.Annotations = map[string]string{nameAnnotation: im.Ref}
	manifest.Platform = &v1.Platform{Architecture: runtime.GOARCH, OS: runtime.GOOS}
	a.file(v1.ImageLayoutFile, []byte(`{"imageLayoutVersion":"1.0.0"}`))
	a.file(v1.ImageIndexFile, a.marshal(v1.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: v1.MediaTypeImageIndex,
		Manifests: []v1.Descriptor{manifest},
	}))
	return a.close()
}

// archive writes a layout and keeps its first error.
type archive struct {
	tw  *tar.Writer
	err error
}

func (a *archive) marshal(v any) []byte {
	b, err := json.Marshal(v)
	if a.err == nil {
		a.err = err
	}
	return b
}

func (a *archive) json(mediaType string, v any) v1.Descriptor { return a.blob(mediaType, a.marshal(v)) }

func (a *archive) blob(mediaType string, b []byte) v1.Descriptor {
	d := digest.FromBytes(b)
	a.file(path.Join(v1.ImageBlobsDir, d.Algorithm().String(), d.Encoded()), b)
	return v1.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(b))}
}

func (a *archive) file(name string, b []byte) {
	if a.err != nil {
		return
	}
	if a.err = a.tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(b))}); a.err == nil {
		_, a.err = a.tw.Write(b)
	}
}

func (a *archive) close() error {
	if a.err != nil {
		return a.err
	}
	return a.tw.Close()
}

// layerTar makes the layer, with every directory that the files need.
func layerTar(files []File) ([]byte, error) {
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	made := map[string]bool{"/": true}
	for _, f := range slices.SortedFunc(slices.Values(files), byPath) {
		if made[f.Path] {
			continue
		}
		if err := parents(tw, made, path.Dir(f.Path)); err != nil {
			return nil, err
		}
		made[f.Path] = true
		if err := f.writeTo(tw); err != nil {
			return nil, fmt.Errorf("%s: %w", f.Path, err)
		}
	}
	err := tw.Close()
	return buf.Bytes(), err
}

func byPath(a, b File) int { return bytes.Compare([]byte(a.Path), []byte(b.Path)) }

func parents(tw *tar.Writer, made map[string]bool, dir string) error {
	if made[dir] {
		return nil
	}
	if err := parents(tw, made, path.Dir(dir)); err != nil {
		return err
	}
	made[dir] = true
	return File{Path: dir, Mode: os.ModeDir | 0o755}.writeTo(tw)
}

func (f File) writeTo(tw *tar.Writer) error {
	h := &tar.Header{Name: f.Path[1:], Mode: int64(f.Mode.Perm()), Typeflag: tar.TypeReg}
	body := f.Body
	switch {
	case f.Mode.IsDir():
		h.Typeflag, h.Name = tar.TypeDir, h.Name+"/"
		if f.Mode&os.ModeSticky != 0 {
			h.Mode |= 0o1000
		}
	case f.Link != "":
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, f.Link, 0o777
	case f.Source != "":
		b, err := os.ReadFile(f.Source)
		if err != nil {
			return err
		}
		body = b
	}
	h.Size = int64(len(body))
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	_, err := tw.Write(body)
	return err
}
