package daemon

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/api/types/runc/options"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/cr/ociruntime"
)

func sample() *record {
	return &record{
		Version:   recordVersion,
		ID:        "c1",
		Namespace: "default",
		Labels:    map[string]string{"app": "web"},
		Image: imageRecord{
			Name:      "docker.io/library/busybox:1",
			MediaType: v1.MediaTypeImageIndex,
			Digest:    digest.FromString("index"),
			Size:      5,
			Chain:     digest.FromString("layers"),
		},
		Snapshotter: "overlayfs",
		Runtime:     "io.containerd.runc.v2",
		Spec:        object{TypeURL: "spec", Value: []byte(`{"linux":{"cgroupsPath":"/default/c1"}}`)},
	}
}

func TestDecode(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*record)
		want   error // nil: is taken
	}{
		{"whole", func(*record) {}, nil},
		{"no labels", func(r *record) { r.Labels = nil }, nil},
		{"version", func(r *record) { r.Version++ }, errs.ErrVersion},
		{"no id", func(r *record) { r.ID = "" }, errs.ErrCorrupt},
		{"id is a path", func(r *record) { r.ID = "../c1" }, errs.ErrCorrupt},
		{"namespace", func(r *record) { r.Namespace = "a/b" }, errs.ErrCorrupt},
		{"snapshotter", func(r *record) { r.Snapshotter = "a,id==b" }, errs.ErrCorrupt},
		{"label", func(r *record) { r.Labels = map[string]string{"a": strings.Repeat("b", 5000)} }, errs.ErrCorrupt},
		{"no image", func(r *record) { r.Image.Name = "" }, errs.ErrCorrupt},
		{"long image", func(r *record) { r.Image.Name = strings.Repeat("i", maxName+1) }, errs.ErrCorrupt},
		{"media type", func(r *record) { r.Image.MediaType = v1.MediaTypeImageLayer }, errs.ErrCorrupt},
		{"size", func(r *record) { r.Image.Size = -1 }, errs.ErrCorrupt},
		{"digest", func(r *record) { r.Image.Digest = "md5" }, errs.ErrCorrupt},
		{"chain", func(r *record) { r.Image.Chain = "sha256:x" }, errs.ErrCorrupt},
		{"no spec", func(r *record) { r.Spec = object{} }, errs.ErrCorrupt},
		{"spec", func(r *record) { r.Spec.Value = []byte("{") }, errs.ErrCorrupt},
	} {
		r := sample()
		tc.change(r)
		b, err := json.Marshal(r)
		must(t, err)
		got, spec, err := decode(b)
		switch {
		case tc.want != nil && !errors.Is(err, tc.want):
			t.Errorf("%s: %v, want %v", tc.name, err, tc.want)
		case tc.want == nil && (err != nil || got.ID != "c1" || spec.Linux.CgroupsPath != "/default/c1"):
			t.Errorf("%s: %+v, %v", tc.name, got, err)
		}
	}
}

func TestDecodeBytes(t *testing.T) {
	good, err := sample().encode()
	must(t, err)
	for name, b := range map[string]string{
		"nothing":   "",
		"no object": "7",
		"null":      "null",
		"unknown":   `{"Version":1,"Foo":1}`,
		"more":      string(good) + "{}",
		"cut":       string(good[:len(good)-2]),
		"too large": strings.Repeat(" ", maxRecord+1),
	} {
		_, _, err := decode([]byte(b))
		if !errors.Is(err, errs.ErrCorrupt) && !errors.Is(err, errs.ErrVersion) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	good, err := sample().encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"Version":1}`))
	f.Add([]byte(`{"Version":1,"ID":"a","Namespace":"b","Snapshotter":"c","Options":{"TypeURL":"x","Value":"eA=="}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, spec, err := decode(b)
		if err != nil {
			if !errors.Is(err, errs.ErrCorrupt) && !errors.Is(err, errs.ErrVersion) {
				t.Errorf("an error of no class: %v", err)
			}
			return
		}
		if spec == nil {
			t.Fatal("no spec")
		}
		if o, err := decodeOptions(r.Options); err == nil {
			stateRoot(o, r.Namespace)
		}
		if err := errors.Join(checkSpec(spec), checkSources(spec)); err != nil && err.Error() == "" {
			t.Error("an error without words")
		}
		if b, err := moveCgroup(r.Spec.Value, r.ID, r.Namespace, "other"); err == nil && !json.Valid(b) {
			t.Errorf("cgroup: %s", b)
		}
		if _, err := r.encode(); err != nil {
			t.Errorf("encode: %v", err)
		}
	})
}

func TestMoveCgroup(t *testing.T) {
	for _, tc := range []struct{ name, in, want string }{
		{"moved", `{"linux":{"cgroupsPath":"/a/c","x":1e400},"y":[1]}`, `{"linux":{"cgroupsPath":"/b/c","x":1e400},"y":[1]}`},
		{"its own", `{"linux":{"cgroupsPath":"/mine"}}`, `{"linux":{"cgroupsPath":"/mine"}}`},
		{"another container's", `{"linux":{"cgroupsPath":"/a/cc"}}`, `{"linux":{"cgroupsPath":"/a/cc"}}`},
		{"none", `{"linux":{}}`, `{"linux":{}}`},
		{"no linux", `{"hostname":"h"}`, `{"hostname":"h"}`},
	} {
		got, err := moveCgroup([]byte(tc.in), "c", "a", "b")
		if string(got) != tc.want || err != nil {
			t.Errorf("%s: %s, %v; want %s", tc.name, got, err, tc.want)
		}
	}
	if _, err := moveCgroup([]byte("{"), "c", "a", "b"); err == nil {
		t.Error("half a spec is taken")
	}
}

func TestDecodeOptions(t *testing.T) {
	pack := func(v any) *object {
		a, err := typeurl.MarshalAny(v)
		must(t, err)
		return newObject(a)
	}
	for _, tc := range []struct {
		name   string
		in     *object
		root   string // "": refused
		binary string
	}{
		{"none", nil, "/run/containerd/runc/ns", ""},
		{"runc's", pack(&options.Options{Root: "/r", BinaryName: "crun"}), "/r/ns", "crun"},
		{"generic", pack(&runtimeoptions.Options{ConfigBody: []byte("Root = '/r'\nBinaryName = 'crun'")}), "/r/ns", "crun"},
		{"broken", pack(&runtimeoptions.Options{ConfigBody: []byte("Root = ")}), "", ""},
		{"file", pack(&runtimeoptions.Options{ConfigPath: "/etc/shim.toml"}), "", ""},
		{"other", pack(&options.CheckpointOptions{Exit: true}), "", ""},
		{"unknown", &object{TypeURL: "nobody's", Value: []byte("x")}, "", ""},
	} {
		o, err := decodeOptions(tc.in)
		switch {
		case tc.root == "" && err == nil:
			t.Errorf("%s is taken", tc.name)
		case tc.root != "" && (err != nil || stateRoot(o, "ns") != tc.root || o.BinaryName != tc.binary):
			t.Errorf("%s: %v, %v", tc.name, o, err)
		}
	}
}

// TestFindRuntime: a container that stasis itself runs has the host's runtime.
func TestFindRuntime(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"crun", "youki"} {
		must(t, os.WriteFile(filepath.Join(dir, name), nil, 0o700))
	}
	t.Setenv("PATH", dir)
	t.Setenv(ociruntime.Env, "")
	for binary, want := range map[string]string{"": "crun", "youki": "youki", "/usr/bin/stasis": "crun"} {
		if got, err := findRuntime(binary); got != filepath.Join(dir, want) || err != nil {
			t.Errorf("%q: %q, %v; want %s", binary, got, err, want)
		}
	}
}

func TestCheckKind(t *testing.T) {
	whole := containers.Container{Image: "i", SnapshotKey: "k", Snapshotter: "s", Spec: &object{TypeURL: "x"}}
	if err := checkKind(&whole); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*containers.Container){
		"pod":      func(c *containers.Container) { c.SandboxID = "p" },
		"pod's":    func(c *containers.Container) { c.Labels = map[string]string{criLabel: "container"} },
		"restarts": func(c *containers.Container) { c.Labels = map[string]string{restartLabel: "running"} },
		"image":    func(c *containers.Container) { c.Image = "" },
		"snapshot": func(c *containers.Container) { c.SnapshotKey = "" },
		"spec":     func(c *containers.Container) { c.Spec = nil },
	} {
		c := whole
		change(&c)
		if checkKind(&c) == nil {
			t.Errorf("%s: is taken", name)
		}
	}
}

func TestCheckSources(t *testing.T) {
	dir := t.TempDir()
	good := &specs.Spec{
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/data", Type: "bind", Source: dir},
		},
		Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: "pid"}, {Type: "network", Path: "/proc/self/ns/net"}}},
	}
	if err := checkSources(good); err != nil {
		t.Error(err)
	}
	bad := &specs.Spec{
		Mounts: []specs.Mount{
			{Destination: "/a", Type: "bind", Source: filepath.Join(dir, "none-a")},
			{Destination: "/b", Type: "none", Source: filepath.Join(dir, "none-b"), Options: []string{"rbind", "ro"}},
			{Destination: "/c", Type: "bind", Source: "relative-c"},
		},
		Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: "network", Path: filepath.Join(dir, "none-d")}}},
	}
	err := checkSources(bad)
	for _, want := range []string{"none-a", "none-b", "relative-c", "none-d"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not name %s", err, want)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
