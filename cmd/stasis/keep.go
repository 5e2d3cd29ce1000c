package main

import (
	"context"
	"fmt"
	"strconv"

	"github.com/stasis-cr/stasis/cr"
)

// keepCommand is what the engine runs stasis with to hold the trackers of a
// container from one checkpoint to the next. It is not in help.
func (a *app) keepCommand() *command {
	return &command{
		name: cr.KeepVerb, args: "<pid> <record>",
		about: "The engine runs this itself; see checkpoint --pre-dump.",
		run: func(ctx context.Context, args []string) (int, error) {
			if len(args) != 2 {
				return 0, fmt.Errorf("%q requires exactly 2 argument(s)", cr.KeepVerb)
			}
			init, err := strconv.Atoi(args[0])
			if err != nil {
				return 0, fmt.Errorf("%s: %w", cr.KeepVerb, err)
			}
			return 0, cr.KeepTrackers(ctx, init, args[1])
		},
	}
}
