package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stasis-cr/stasis/shim/migrate"
)

// withHelper puts the other program on PATH, and notes how it is run.
func withHelper(t *testing.T, f *fake) *[]string {
	t.Helper()
	path := filepath.Join(filepath.Dir(f.runtime), migrate.Command)
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	ran := new([]string)
	f.exec = func(at string, argv, _ []string) error {
		if at != path {
			t.Errorf("%s is run", at)
		}
		*ran = argv
		return nil
	}
	return ran
}

var keyFlags = []string{"--tls-cert", "/c", "--tls-key", "/k", "--tls-ca", "/a"}

func TestMigrateFlags(t *testing.T) {
	f := newFake(t)
	f.env = append(f.env, "CONTAINERD_NAMESPACE=ours")
	ran := withHelper(t, f)
	args := slices.Concat([]string{"--debug", "migrate", "--lazy-pages", "--max-downtime", "50ms", "--rounds", "3", "--keep"}, keyFlags,
		[]string{"-a", "/sock", "c1", "host:7"})
	f.run(t.Context(), args)
	if len(*ran) != 3 || (*ran)[1] != migrate.SourceVerb {
		t.Fatalf("%q: %s", *ran, f.stderr.String())
	}
	var c migrate.SourceConfig
	if err := json.Unmarshal([]byte((*ran)[2]), &c); err != nil {
		t.Fatal(err)
	}
	want := migrate.SourceConfig{
		Place: migrate.Place{Socket: "/sock", Namespace: "ours", ID: "c1"},
		To:    "host:7", Dir: migrate.DefaultDir, Lazy: true, Downtime: 50 * time.Millisecond, Rounds: 3, Keep: true, Debug: true,
	}
	want.Keys.Cert, want.Keys.Key, want.Keys.CA = "/c", "/k", "/a"
	if c != want {
		t.Errorf("%+v", c)
	}
}

func TestMigrateServerFlags(t *testing.T) {
	f := newFake(t)
	ran := withHelper(t, f)
	f.run(t.Context(), slices.Concat([]string{"migrate-server", "--listen", ":0", "--log-path", "/l"}, keyFlags))
	var c migrate.ListenConfig
	if len(*ran) != 3 || (*ran)[1] != migrate.ListenVerb || json.Unmarshal([]byte((*ran)[2]), &c) != nil {
		t.Fatalf("%q: %s", *ran, f.stderr.String())
	}
	if c.Socket != containerdSocket || c.Namespace != containerdNamespace || c.Listen != ":0" || c.LogDir != "/l" || c.Keys.CA != "/a" {
		t.Errorf("%+v", c)
	}
}

func TestMigrateUsage(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"migrate", "c1"}, "requires exactly 2"},
		{slices.Concat([]string{"migrate"}, keyFlags, []string{"c1", "host"}), "want HOST:PORT"},
		{[]string{"migrate", "c1", "host:1"}, "--tls-cert is missing"},
		{[]string{"migrate", "--rounds", "0", "c1", "host:1"}, "at least 1"},
		{[]string{"migrate", "--max-downtime", "-1s", "c1", "host:1"}, "more than 0"},
		{[]string{"migrate-server"}, "--listen is missing"},
		{[]string{"migrate-server", "--listen", ":0", "x"}, "takes no arguments"},
		{slices.Concat([]string{"migrate"}, keyFlags, []string{"c1", "host:1"}), "stasis-migrate is neither in"},
	} {
		f := newFake(t)
		if status := f.run(t.Context(), c.args); status != 1 || !strings.Contains(f.stderr.String(), c.want) {
			t.Errorf("%q: status %d, %s", c.args, status, f.stderr.String())
		}
	}
}
