package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/stasis-cr/stasis/cr/errs"
	"github.com/stasis-cr/stasis/images"
)

// global is what stands in front of the verb.
type global struct {
	root, log, logFormat string
	runtime              string
	debug, version       bool
	pass                 []string // the same for the runtime, without what is ours

	logFile *os.File // nil: stderr
	handler *images.Handler
}

// options are runc's, with those of crun and older runcs that take a value, so
// that the verb behind them is found.
func (g *global) options() []option {
	ours := func(o option) option {
		o.ours = true
		return o
	}
	return []option{
		on(&g.debug, "debug", "enable debug logging"),
		text(&g.log, "log", "write the log to this `file` (default: standard error)"),
		text(&g.logFormat, "log-format", "format of the log: text or json (default: text)"),
		text(&g.root, "root", "directory in which the runtime keeps the state of containers"),
		accepted("systemd-cgroup", "let the runtime use systemd for cgroups", false),
		accepted("rootless", "ignore cgroup permission errors: true, false or auto", true),
		ours(text(&g.runtime, "runtime",
			"the OCI runtime: a path or a name (default: $STASIS_RUNTIME, or the first of runc and crun)")),
		with("v", on(&g.version, "version", "print the version")),
		hidden(accepted("criu", "", true)),
		hidden(accepted("cgroup-manager", "", true)),
	}
}

// openLog opens what --log names. It is appended to: the caller may have given
// the same file to several commands.
func (g *global) openLog(stderr io.Writer) error {
	if err := g.checkFormat(); err != nil {
		return err
	}
	level, w := slog.LevelInfo, stderr
	if g.log == "" || g.log == "/dev/stderr" {
		level = slog.LevelWarn
	} else {
		f, err := os.OpenFile(g.log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
		if err != nil {
			return fmt.Errorf("log: %w", err)
		}
		g.logFile, w = f, f
	}
	if g.debug {
		level = slog.LevelDebug
	}
	g.handler = images.NewHandler(w, level, g.format())
	return nil
}

func (g *global) checkFormat() error {
	switch g.logFormat {
	case "", "text", "json":
		return nil
	}
	return fmt.Errorf("invalid log-format: %s", g.logFormat)
}

func (g *global) format() images.Format {
	if g.logFormat == "json" {
		return images.JSON
	}
	return images.Text
}

// closeLog forgets the log file. An append that went wrong was reported by the
// write itself.
func (g *global) closeLog() {
	if g.logFile != nil {
		g.logFile.Close() //nolint:errcheck // see above
	}
}

// workLog adds the log name in the work directory to the log: neighbours look
// for it there. The container matters more than its log: a directory that can't
// be written to costs a warning.
func (g *global) workLog(dir, name string) (log *slog.Logger, work slog.Handler, done func() error) {
	main := slog.New(g.handler)
	h, c, err := images.OpenLog(dir, name)
	if err != nil {
		main.Warn("no " + name + ": " + err.Error()) //nolint:sloglint // a line for people
		return main, slog.DiscardHandler, func() error { return nil }
	}
	return slog.New(slog.NewMultiHandler(g.handler, h)), h, c.Close
}

// record writes err to one log alone.
func record(h slog.Handler, err error) error {
	r := slog.NewRecord(time.Now(), slog.LevelError, errs.OneLine(err), 0)
	return h.Handle(context.Background(), r)
}

// fail reports err, on one line, and returns the exit status for it. stderr
// comes first: it is read by more callers than the log.
func (a *app) fail(g *global, err error) int {
	if status, ok := errors.AsType[exitError](err); ok {
		return int(status)
	}
	line := fmt.Sprintf("stasis: %s\n", printable(errs.OneLine(err)))
	if g.logFile == nil && g.logFormat == "json" {
		line = string(images.JSON(slog.NewRecord(time.Now(), slog.LevelError, err.Error(), 0), nil)) + "\n"
	}
	_, werr := io.WriteString(a.err, line)
	if g.logFile == nil && g.log != "" && g.handler == nil && g.checkFormat() == nil {
		werr = errors.Join(werr, g.openLog(io.Discard)) // the verb did not come that far
	}
	if g.logFile != nil {
		werr = errors.Join(werr, record(g.handler, err))
	}
	if werr != nil { // nowhere left to say so but in the status
		return 2
	}
	return 1
}

// exitError is an outcome that was reported already.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }
