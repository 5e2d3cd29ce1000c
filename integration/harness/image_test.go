package harness

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// readTar returns the entries of an archive by name.
func readTar(t *testing.T, b []byte) (order []string, headers map[string]*tar.Header, bodies map[string][]byte) {
	t.Helper()
	headers, bodies = map[string]*tar.Header{}, map[string][]byte{}
	tr := tar.NewReader(bytes.NewReader(b))
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return order, headers, bodies
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		order = append(order, h.Name)
		headers[h.Name], bodies[h.Name] = h, body
	}
}

func decode[T any](t *testing.T, b []byte) (v T) {
	t.Helper()
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestWriteArchive(t *testing.T) {
	source := filepath.Join(t.TempDir(), "source")
	if err := os.WriteFile(source, []byte("copied"), 0o600); err != nil {
		t.Fatal(err)
	}
	im := Image{Ref: "x.test/a:1", Cmd: []string{"/a/b/c"}, Files: []File{
		{Path: "/a/b/c", Mode: 0o755, Source: source},
		{Path: "/a/b/c", Mode: 0o755, Body: []byte("a second one is left out")},
		{Path: "/a/link", Link: "b/c"},
		{Path: "/tmp", Mode: os.ModeDir | os.ModeSticky | 0o777},
		{Path: "/etc/passwd", Mode: 0o644, Body: []byte("root")},
	}}
	name := filepath.Join(t.TempDir(), "im.tar")
	if err := im.WriteArchive(name); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	_, _, files := readTar(t, b)
	blob := func(d v1.Descriptor) []byte {
		t.Helper()
		body := files["blobs/sha256/"+d.Digest.Encoded()]
		if digest.FromBytes(body) != d.Digest || int64(len(body)) != d.Size {
			t.Fatalf("blob %s: %d bytes, want %d", d.Digest, len(body), d.Size)
		}
		return body
	}
	index := decode[v1.Index](t, files["index.json"])
	if len(index.Manifests) != 1 || index.Manifests[0].Annotations[nameAnnotation] != im.Ref {
		t.Fatalf("index %+v", index)
	}
	manifest := decode[v1.Manifest](t, blob(index.Manifests[0]))
	config := decode[v1.Image](t, blob(manifest.Config))
	layer := blob(manifest.Layers[0])
	if config.RootFS.DiffIDs[0] != digest.FromBytes(layer) || config.Config.Cmd[0] != im.Cmd[0] {
		t.Errorf("config %+v", config)
	}
	checkLayer(t, layer)
}

func checkLayer(t *testing.T, layer []byte) {
	t.Helper()
	order, headers, bodies := readTar(t, layer)
	want := []string{"a/", "a/b/", "a/b/c", "a/link", "etc/", "etc/passwd", "tmp/"}
	if len(order) != len(want) {
		t.Fatalf("layer %q, want %q", order, want)
	}
	for i := range want {
		if order[i] != want[i] {
			t.Errorf("layer %q, want %q", order, want)
		}
	}
	if headers["tmp/"].Mode != 0o1777 || headers["a/link"].Linkname != "b/c" || string(bodies["a/b/c"]) != "copied" {
		t.Errorf("/tmp %o, link %q, copy %q", headers["tmp/"].Mode, headers["a/link"].Linkname, bodies["a/b/c"])
	}
}

func TestImageWithoutSource(t *testing.T) {
	im := Image{Ref: "x", Files: []File{{Path: "/a", Source: "/nonexistent"}}}
	if err := im.WriteArchive(filepath.Join(t.TempDir(), "im.tar")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v, want %v", err, os.ErrNotExist)
	}
}

func TestUnescape(t *testing.T) {
	for in, want := range map[string]string{
		"/a":                "/a",
		`/a\040b`:           "/a b",
		`/\134040`:          `/\040`,
		`/\011\012`:         "/\t\n",
		`/sys/fs/cgroup/\0`: `/sys/fs/cgroup/\0`,
	} {
		if got := unescape(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
