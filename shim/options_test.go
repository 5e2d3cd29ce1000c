package shim

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/api/types/runc/options"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
)

const table = `
BinaryName = "/usr/bin/crun"
CriuPath = ""
Root = "/run/x"
SystemdCgroup = true
IoUid = 7
`

func pack(t *testing.T, m proto.Message) *anypb.Any {
	t.Helper()
	a, err := typeurl.MarshalAnyToProto(m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestDecodeOptions(t *testing.T) {
	file := filepath.Join(t.TempDir(), "options.toml")
	if err := os.WriteFile(file, []byte(table), 0o600); err != nil {
		t.Fatal(err)
	}
	full := &options.Options{BinaryName: "/usr/bin/crun", Root: "/run/x", SystemdCgroup: true, IoUid: 7}
	for _, tc := range []struct {
		name string
		in   *anypb.Any
		want *options.Options
	}{
		{"none", nil, &options.Options{}},
		{"empty", &anypb.Any{}, &options.Options{}},
		{"runc", pack(t, full), full},
		{"body", pack(t, &runtimeoptions.Options{ConfigBody: []byte(table)}), full},
		{"file", pack(t, &runtimeoptions.Options{ConfigPath: file}), full},
		{"body first", pack(t, &runtimeoptions.Options{ConfigPath: "/none", ConfigBody: []byte(table)}), full},
		{"generic, empty", pack(t, &runtimeoptions.Options{TypeUrl: "x"}), &options.Options{}},
	} {
		got, err := DecodeOptions(tc.in)
		if err != nil || !proto.Equal(got, tc.want) {
			t.Errorf("%s: %v, %v; want %v", tc.name, got, err, tc.want)
		}
	}
}

func TestDecodeOptionsRefuses(t *testing.T) {
	body := func(s string) *anypb.Any { return pack(t, &runtimeoptions.Options{ConfigBody: []byte(s)}) }
	for name, in := range map[string]*anypb.Any{
		"unknown type": {TypeUrl: "example.com/x", Value: []byte{1}},
		"other type":   {TypeUrl: "google.protobuf.Any", Value: mustMarshal(t, pack(t, &emptypb.Empty{}))},
		"misspelt key": body(`BinaryNam = "crun"`),
		"wrong kind":   body(`SystemdCgroup = "yes"`),
		"no TOML":      body(`{`),
		"no file":      pack(t, &runtimeoptions.Options{ConfigPath: "/nonexistent"}),
	} {
		if got, err := DecodeOptions(in); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: %v, %v; want an invalid argument", name, got, err)
		}
	}
}

func mustMarshal(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestTakeHost(t *testing.T) {
	for _, tc := range []struct{ binary, host, left string }{
		{"", "", ""},
		{"runc", "runc", ""},
		{"/usr/bin/crun", "/usr/bin/crun", ""},
		{"/opt/bin/stasis", "", "/opt/bin/stasis"},
	} {
		o := &options.Options{BinaryName: tc.binary}
		if host := takeHost(o); host != tc.host || o.BinaryName != tc.left {
			t.Errorf("%q: host %q, left %q; want %q, %q", tc.binary, host, o.BinaryName, tc.host, tc.left)
		}
	}
}

func TestHostRuntimeIsOne(t *testing.T) {
	t.Setenv(hostEnv, "inherited")
	var h hostRuntime
	for i, tc := range []struct {
		path string
		ok   bool
	}{{"crun", true}, {"crun", true}, {"runc", false}, {"", false}} {
		if err := h.choose(tc.path); (err == nil) != tc.ok {
			t.Errorf("%d: %q: %v", i, tc.path, err)
		}
	}
	if got := os.Getenv(hostEnv); got != "crun" {
		t.Errorf("%s=%q", hostEnv, got)
	}
	var other hostRuntime
	if err := other.choose(""); err != nil || os.Getenv(hostEnv) != "crun" {
		t.Errorf("no choice changed %s: %v", hostEnv, err)
	}
}

func TestHostFile(t *testing.T) {
	dir := t.TempDir()
	if err := saveHost(dir, ""); err != nil {
		t.Fatal(err)
	}
	if got, err := loadHost(dir); got != "" || err != nil {
		t.Errorf("none: %q, %v", got, err)
	}
	if err := saveHost(dir, "/usr/bin/crun"); err != nil {
		t.Fatal(err)
	}
	if got, err := loadHost(dir); got != "/usr/bin/crun" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

func TestFindStasis(t *testing.T) {
	beside, path := t.TempDir(), t.TempDir()
	t.Setenv("PATH", path)
	if got, err := findStasis(beside); err == nil {
		t.Errorf("found %q where there is none", got)
	}
	for _, dir := range []string{path, beside} { // the second goes before the first
		want := filepath.Join(dir, "stasis")
		if err := os.WriteFile(want, []byte("#!/bin/sh\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		if got, err := findStasis(beside); got != want || err != nil {
			t.Errorf("%q, %v; want %q", got, err, want)
		}
	}
}
