package daemon

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stasis-cr/stasis/cr/errs"
)

const (
	// recordVersion is the one version of a description that is written and read.
	recordVersion = 1
	// maxRecord bounds a description, in bytes. The largest specs have some
	// hundred kilobytes.
	maxRecord = 8 << 20
	// maxName bounds the name of an image, in bytes.
	maxName = 4096
)

// record is a description: what a container is made of.
type record struct {
	Version     int
	ID          string
	Namespace   string // of the source's containerd
	Labels      map[string]string
	Image       imageRecord
	Snapshotter string
	Runtime     string
	Options     *object // of the runtime; nil: none
	Spec        object  // a specs.Spec in JSON
	Extensions  map[string]object
}

// imageRecord is an image as a containerd keeps it.
type imageRecord struct {
	Name      string
	MediaType string // of an index or a manifest
	Digest    digest.Digest
	Size      int64         // of the index or manifest, in bytes
	Chain     digest.Digest // of its layers on the host's platform
}

func (i imageRecord) target() v1.Descriptor {
	return v1.Descriptor{MediaType: i.MediaType, Digest: i.Digest, Size: i.Size}
}

// object is a message with its type, as containerd stores it.
type object struct {
	TypeURL string
	Value   []byte
}

// GetTypeUrl makes an object a [typeurl.Any].
func (o *object) GetTypeUrl() string { return o.TypeURL }

// GetValue makes an object a [typeurl.Any].
func (o *object) GetValue() []byte { return o.Value }

// newObject returns nil for nil.
func newObject(a typeurl.Any) *object {
	if a == nil || a.GetTypeUrl() == "" {
		return nil
	}
	return &object{TypeURL: a.GetTypeUrl(), Value: a.GetValue()}
}

// encode checks what the other side would refuse.
func (r *record) encode() ([]byte, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	if _, _, err := decode(b); err != nil {
		return nil, err
	}
	return b, nil
}

// decode reads a description, which another machine wrote. What it returns is
// well-formed, and nothing more. Errors wrap [errs.ErrCorrupt] or
// [errs.ErrVersion].
func decode(b []byte) (*record, *specs.Spec, error) {
	if len(b) > maxRecord {
		return nil, nil, fmt.Errorf("description: %d bytes, at most %d are taken: %w", len(b), maxRecord, errs.ErrCorrupt)
	}
	var version struct{ Version int }
	if err := json.Unmarshal(b, &version); err != nil {
		return nil, nil, fmt.Errorf("description: %w: %w", err, errs.ErrCorrupt)
	}
	if version.Version != recordVersion {
		return nil, nil, fmt.Errorf("description: version %d, this stasis knows %d; use the same on both machines: %w",
			version.Version, recordVersion, errs.ErrVersion)
	}
	r := &record{}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(r); err != nil {
		return nil, nil, fmt.Errorf("description: %w: %w", err, errs.ErrCorrupt)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, nil, fmt.Errorf("description: more after its end: %w", errs.ErrCorrupt)
	}
	spec, err := r.check()
	if err != nil {
		return nil, nil, fmt.Errorf("description: %w: %w", err, errs.ErrCorrupt)
	}
	return r, spec, nil
}

// check returns the spec, if all of the record is well-formed.
func (r *record) check() (*specs.Spec, error) {
	for what, name := range map[string]string{
		"container id": r.ID, "namespace": r.Namespace, "snapshotter": r.Snapshotter,
	} {
		if err := identifiers.Validate(name); err != nil {
			return nil, fmt.Errorf("%s: %w", what, err)
		}
	}
	for k, v := range r.Labels {
		if err := labels.Validate(k, v); err != nil {
			return nil, fmt.Errorf("label: %w", err)
		}
	}
	if err := r.Image.check(); err != nil {
		return nil, err
	}
	if r.Spec.TypeURL == "" {
		return nil, errors.New("no spec")
	}
	spec := &specs.Spec{}
	if err := json.Unmarshal(r.Spec.Value, spec); err != nil {
		return nil, fmt.Errorf("spec: %w", err)
	}
	return spec, nil
}

func (i *imageRecord) check() error {
	if i.Name == "" || len(i.Name) > maxName {
		return fmt.Errorf("image: a name of %d bytes, want 1 to %d", len(i.Name), maxName)
	}
	if !images.IsIndexType(i.MediaType) && !images.IsManifestType(i.MediaType) {
		return fmt.Errorf("image %s: media type %q is neither of an index nor of a manifest", i.Name, i.MediaType)
	}
	if i.Size < 0 {
		return fmt.Errorf("image %s: %d bytes", i.Name, i.Size)
	}
	for _, d := range []digest.Digest{i.Digest, i.Chain} {
		if err := d.Validate(); err != nil {
			return fmt.Errorf("image %s: digest %q: %w", i.Name, d, err)
		}
	}
	return nil
}

// moveCgroup rewrites the cgroup of a spec that has the one which containerd's
// clients give by default, as it is made of the namespace. All else stays, also
// what this version does not know of.
func moveCgroup(spec []byte, id, from, to string) ([]byte, error) {
	var known specs.Spec
	if err := json.Unmarshal(spec, &known); err != nil {
		return nil, fmt.Errorf("spec: %w", err)
	}
	if known.Linux == nil || known.Linux.CgroupsPath != "/"+from+"/"+id || from == to {
		return spec, nil
	}
	var all, linux map[string]json.RawMessage
	if err := json.Unmarshal(spec, &all); err != nil {
		return nil, fmt.Errorf("spec: %w", err)
	}
	if err := json.Unmarshal(all["linux"], &linux); err != nil {
		return nil, fmt.Errorf("spec: linux: %w", err)
	}
	var err error
	if linux["cgroupsPath"], err = json.Marshal("/" + to + "/" + id); err != nil {
		return nil, err
	}
	if all["linux"], err = json.Marshal(linux); err != nil {
		return nil, err
	}
	return json.Marshal(all)
}

// isBind reports whether a mount shows files of the host.
func isBind(m specs.Mount) bool {
	return m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
}
