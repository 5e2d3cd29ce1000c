package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/stasis-cr/stasis/cr"
)

// app is everything that the command line touches outside itself, so that tests
// can put something else there.
type app struct {
	out, err io.Writer
	env      []string
	exec     func(path string, argv, env []string) error
	engine   engine
}

// engine is the part of package cr that the command line drives.
type engine struct {
	checkpoint func(context.Context, cr.CheckpointOptions) (cr.Stats, error)
	restore    func(context.Context, cr.RestoreOptions) (int, error)
	check      func(context.Context, cr.CheckpointOptions) ([]error, error)
	verify     func(context.Context, cr.VerifyOptions) (cr.Verified, error)
	flatten    func(context.Context, cr.FlattenOptions) error
	servePages func(context.Context, cr.PageServerOptions) error
}

func realEngine() engine {
	return engine{
		checkpoint: cr.Checkpoint, restore: cr.Restore, check: cr.Check,
		verify: cr.Verify, flatten: cr.Flatten, servePages: cr.ServePages,
	}
}

// command is one of our own verbs.
type command struct {
	name    string
	summary string
	args    string // what follows the options, as help shows it
	about   string
	options []option
	run     func(ctx context.Context, args []string) (status int, err error)
}

// commands are our verbs in the order of help. Every other verb is the runtime's.
func (a *app) commands(g *global) []*command {
	return []*command{
		a.checkpointCommand(g),
		a.restoreCommand(g),
		a.checkCommand(g),
		a.inspectCommand(g),
		a.verifyCommand(),
		a.flattenCommand(),
		a.pageServerCommand(g),
		a.migrateCommand(g),
		a.migrateServerCommand(g),
		a.versionCommand(),
	}
}

// run does what args, without the program's name, ask for and returns the exit
// status.
func (a *app) run(ctx context.Context, args []string) int {
	g := &global{}
	options := g.options()
	p, err := parse(options, args, true)
	switch {
	case err != nil && !errors.Is(err, errHelp):
		return a.fail(g, err)
	case g.version:
		return a.report(g, 0, a.printVersion())
	case err != nil || len(p.rest) == 0:
		return a.report(g, 0, a.help(g, nil))
	}
	g.pass = p.passed()
	verb, rest := p.rest[0], p.rest[1:]
	if verb == "help" || verb == "h" {
		return a.report(g, 0, a.help(g, rest))
	}
	for _, c := range append(a.commands(g), a.keepCommand()) {
		if c.name == verb {
			return a.runCommand(ctx, g, c, rest)
		}
	}
	return a.report(g, 1, a.passThrough(g, p.rest))
}

// runCommand runs one of our own verbs.
func (a *app) runCommand(ctx context.Context, g *global, c *command, args []string) int {
	p, err := parse(c.options, args, false)
	if errors.Is(err, errHelp) {
		return a.report(g, 0, a.commandHelp(c))
	}
	if err != nil {
		return a.fail(g, err)
	}
	if err := g.openLog(a.err); err != nil {
		return a.fail(g, err)
	}
	defer g.closeLog()
	status, err := c.run(ctx, p.rest)
	return a.report(g, status, err)
}

// report turns the outcome of a verb into an exit status.
func (a *app) report(g *global, status int, err error) int {
	if err != nil {
		return a.fail(g, err)
	}
	return status
}

// getenv reads the environment that the program was started with.
func (a *app) getenv(name string) string {
	for _, kv := range a.env {
		if v, ok := strings.CutPrefix(kv, name+"="); ok {
			return v
		}
	}
	return ""
}

// oneID takes the container's name out of args. The rule for its letters is
// runc's: the name becomes a directory of the runtime's state.
func oneID(verb string, args []string) (string, error) {
	if len(args) != 1 {
		return "", fmt.Errorf("%q requires exactly 1 argument(s)", verb)
	}
	id := args[0]
	odd := func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("_+-.", r)
	}
	if id == "" || id == "." || id == ".." || strings.ContainsFunc(id, odd) {
		return "", fmt.Errorf("invalid container ID %q", id)
	}
	return id, nil
}
