// Command stasis-migrate moves containers between the containerds of two machines.
// The stasis command runs it, with flags checked and made into JSON:
//
//	stasis migrate         source
//	stasis migrate-server  listen, and a session for each connection
//
// A source runs a guard, which lives on if the source dies. See package
// shim/migrate.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"github.com/stasis-cr/stasis/cr"
	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/shim/migrate"
)

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := do(ctx, args); err != nil {
		fmt.Fprintln(os.Stderr, "stasis:", errs.OneLine(err))
		return 1
	}
	return 0
}

func do(ctx context.Context, args []string) error {
	if len(args) == 3 && args[0] == cr.KeepVerb { // the engine runs its own program
		init, err := strconv.Atoi(args[1])
		if err != nil {
			return fmt.Errorf("%s: %w", cr.KeepVerb, err)
		}
		return cr.KeepTrackers(ctx, init, args[2])
	}
	verbs := map[string]func(context.Context, []byte) error{
		migrate.SourceVerb: source, migrate.ListenVerb: listen,
		migrate.SessionVerb: session, migrate.GuardVerb: guard,
	}
	if len(args) != 2 || verbs[args[0]] == nil {
		return errors.New("this program is run by \"stasis migrate\" and \"stasis migrate-server\"")
	}
	return verbs[args[0]](ctx, []byte(args[1]))
}

// decode reads the configuration of a verb.
func decode[T any](b []byte) (c T, err error) {
	if err := json.Unmarshal(b, &c); err != nil {
		return c, fmt.Errorf("configuration: %w", err)
	}
	return c, nil
}

func logger(w io.Writer, debug bool) *slog.Logger {
	level := slog.LevelWarn
	if debug {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level}))
}
