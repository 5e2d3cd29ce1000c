package ociruntime

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func program(t *testing.T, dir, name string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"), mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFind(t *testing.T) {
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	bin, ours := t.TempDir(), t.TempDir()
	runc, youki := program(t, bin, "runc", 0o700), program(t, bin, "youki", 0o700)
	if err := os.Symlink(self, filepath.Join(ours, "runc")); err != nil {
		t.Fatal(err)
	}
	program(t, ours, "crun", 0o600)
	only := t.TempDir()
	crun := program(t, only, "crun", 0o700)
	for _, tt := range []struct{ name, env, path, want, err string }{
		{path: bin, want: runc},
		{path: only, want: crun},
		{path: "relative:" + ours + ":" + bin, want: runc}, // not ourselves
		{path: ours, err: Env},                             // ourselves, and a crun that is no program
		{name: "runc", path: ours, err: "is stasis itself"},
		{name: "crun", path: ours, err: "permission"},
		{name: "crun", path: bin, err: "not found in PATH"},
		{name: "/nowhere/runc", err: "no such file"},
		{name: runc, env: "/nowhere", want: runc},
		{env: runc, want: runc},
		{env: "youki", path: bin, want: youki},
		{env: "none", path: bin, err: "none"},
	} {
		env := map[string]string{Env: tt.env, "PATH": tt.path}
		got, err := Find(tt.name, func(name string) string { return env[name] })
		if got != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%+v: %q, %v", tt, got, err)
		}
	}
}

// TestInPath: who has no PATH gets the usual one, and nobody the current directory.
func TestInPath(t *testing.T) {
	for path, want := range map[string]string{"": "/usr/local/sbin/x", "/a::b:/c": "/a/x /c/x", ".": ""} {
		got := strings.Join(InPath("x", func(string) string { return path }), " ")
		if !strings.HasPrefix(got, want) || path != "" && got != want {
			t.Errorf("PATH %q: %s, want %s", path, got, want)
		}
	}
}
