package main

import (
	"context"
	"fmt"

	"github.com/stasis-cr/stasis/cr"
	"github.com/stasis-cr/stasis/images"
)

const flattenAbout = `The flatten command writes a checkpoint that was made with --parent-path as one
that stands alone: the earlier checkpoints are not needed to restore it. The
first directory is left as it is.`

// flattenCommand ends a chain of checkpoints.
func (a *app) flattenCommand() *command {
	return &command{
		name: "flatten", summary: "write a checkpoint without its earlier ones",
		args: "<directory> <new directory>", about: flattenAbout,
		run: func(ctx context.Context, args []string) (int, error) {
			if len(args) != 2 {
				return 0, fmt.Errorf("%q requires exactly 2 argument(s)", "flatten")
			}
			return 0, a.flatten(ctx, args[0], args[1])
		},
	}
}

func (a *app) flatten(ctx context.Context, from, to string) error {
	bar := newProgress(a.err)
	err := a.engine.flatten(ctx, cr.FlattenOptions{ImageDir: from, OutDir: to, Progress: bar.update})
	bar.end()
	if err != nil {
		return err
	}
	return images.Finish(to)
}
