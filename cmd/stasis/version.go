package main

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func (a *app) versionCommand() *command {
	return &command{
		name: "version", summary: "print the version",
		about: "The version command prints what --version prints.",
		run:   func(context.Context, []string) (int, error) { return 0, a.printVersion() },
	}
}

// printVersion prints lines in runc's manner: docker and podman look for them.
func (a *app) printVersion() error {
	version, commit := "unknown", "unknown"
	if info, ok := debug.ReadBuildInfo(); ok {
		version = info.Main.Version
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				commit = s.Value
			}
		}
	}
	_, err := fmt.Fprintf(a.out, "stasis version %s\ncommit: %s\nspec: %s\ngo: %s\n",
		version, commit, specs.Version, runtime.Version())
	return err
}
