package main

import (
	"context"
	"fmt"

	"github.com/stasis-cr/stasis/cr"
)

const verifyAbout = `The verify command reads all of a checkpoint, checks every byte of it against the
checksums that were made with it, and unpacks what is packed. It prints what is
damaged, one thing on a line, and exits with status 1 if there is anything.`

// verifyCommand reads a checkpoint to the last byte.
func (a *app) verifyCommand() *command {
	return &command{
		name: "verify", summary: "check every byte of a checkpoint",
		args: "<directory>", about: verifyAbout,
		run: func(ctx context.Context, args []string) (int, error) {
			if len(args) != 1 {
				return 0, fmt.Errorf("%q requires exactly 1 argument(s)", "verify")
			}
			return a.verify(ctx, args[0])
		},
	}
}

func (a *app) verify(ctx context.Context, path string) (int, error) {
	bar := newProgress(a.err)
	got, err := a.engine.verify(ctx, cr.VerifyOptions{ImageDir: path, Progress: bar.update})
	bar.end()
	if err != nil {
		return 0, err
	}
	for _, line := range lines(got.Damage) {
		if _, err := fmt.Fprintln(a.out, printable(line)); err != nil {
			return 0, err
		}
	}
	if len(got.Damage) > 0 {
		return 1, nil
	}
	_, err = fmt.Fprintf(a.out, "%s is whole: state, %s, %s; %s of pages and files\n", printable(got.ID),
		count(got.Chunks, "chunk"), count(got.Archives, "archive"), size(uint64(got.Bytes)))
	return 0, err
}
