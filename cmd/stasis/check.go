package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"

	"github.com/stasis-cr/stasis/cr"
	"github.com/stasis-cr/stasis/cr/errs"
)

const checkAbout = `The check command looks for everything that stands in the way of a checkpoint,
without stopping the container, and prints it, one thing on a line. It exits
with status 1 if there is anything.`

// checkCommand says beforehand what checkpoint would refuse.
func (a *app) checkCommand(g *global) *command {
	o := &cr.CheckpointOptions{}
	var asJSON bool
	return &command{
		name: "check", summary: "say what stands in the way of a checkpoint",
		args: "<container-id>", about: checkAbout,
		options: append(policyOptions(o), on(&asJSON, "json", "print a JSON object")),
		run: func(ctx context.Context, args []string) (int, error) {
			if err := a.target(g, "check", o, args); err != nil {
				return 0, err
			}
			o.Log = slog.New(g.handler)
			return a.check(ctx, *o, asJSON)
		},
	}
}

func (a *app) check(ctx context.Context, o cr.CheckpointOptions, asJSON bool) (int, error) {
	found, err := a.engine.check(ctx, o)
	if err != nil {
		return 0, err
	}
	obstacles := lines(found)
	if asJSON {
		err = a.printCheckJSON(o.ID, obstacles)
	} else {
		err = a.printCheck(o.ID, obstacles)
	}
	if len(obstacles) > 0 {
		return 1, err
	}
	return 0, err
}

// lines makes one line of each error, taking joined ones apart.
func lines(found []error) []string {
	list := []string{}
	for _, err := range found {
		j, ok := err.(interface{ Unwrap() []error }) // the outermost only
		if ok && errors.Join(j.Unwrap()...).Error() == err.Error() {
			list = append(list, lines(j.Unwrap())...)
		} else {
			list = append(list, errs.OneLine(err))
		}
	}
	return list
}

func (a *app) printCheck(id string, obstacles []string) error {
	for _, line := range obstacles {
		if _, err := fmt.Fprintln(a.out, printable(line)); err != nil {
			return err
		}
	}
	if len(obstacles) > 0 {
		return nil
	}
	_, err := fmt.Fprintf(a.out, "%s can be checkpointed\n", id)
	return err
}

func (a *app) printCheckJSON(id string, obstacles []string) error {
	enc := json.NewEncoder(a.out)
	enc.SetIndent("", "  ")
	return enc.Encode(struct {
		ID        string   `json:"id"`
		OK        bool     `json:"ok"`
		Obstacles []string `json:"obstacles"`
	}{id, len(obstacles) == 0, obstacles})
}
