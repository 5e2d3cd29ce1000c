// Command bench measures checkpoint and restore of containers of several sizes,
// beside runc with CRIU in the same run if a criu that works is on PATH.
//
//	frozen      how long the container stood still, by the engine's own count
//	seen        the same, as a thread of the container saw it
//	checkpoint  stasis checkpoint --leave-running, from start to end
//	restore     stasis restore --detach, from start to end
//	image       bytes of all files of the image
//	memory      the most memory that the engine had resident, in either
//
// Every figure is the median of n rounds. The engines take turns within a round,
// and memory is warmed up before each: in a virtual machine the first touch of a
// page that the host has not backed yet is slower than anything that is measured.
//
// It needs root, runc, a static busybox, gcc and the go command, and is run in the module's tree.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/stasis-cr/stasis/integration/progs/box"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// options are the flags.
type options struct {
	rounds int
	cases  *regexp.Regexp
	json   bool
	dir    string
	stasis string
	peer   bool
	warm   int // only warm up so many MiB
}

func parse(args []string, errs io.Writer) (options, error) {
	o := options{cases: regexp.MustCompile("")}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(errs)
	f.IntVar(&o.rounds, "n", 5, "rounds; figures are medians")
	f.Func("cases", "regular `expression` of the cases to run", func(s string) (err error) {
		o.cases, err = regexp.Compile(s)
		return err
	})
	f.BoolVar(&o.json, "json", false, "print one JSON array")
	f.StringVar(&o.dir, "dir", "/dev/shm", "folder for containers and images; best a tmpfs")
	f.StringVar(&o.stasis, "stasis", "", "the stasis command; built from source if empty")
	f.BoolVar(&o.peer, "peer", true, "measure runc with CRIU, too, if it is on PATH and works")
	f.IntVar(&o.warm, warmFlag, 0, "only touch so many `MiB` of memory: what the rounds do in a process apart")
	err := f.Parse(args)
	if err == nil && o.rounds < 1 {
		err = errors.New("-n must be at least 1")
	}
	return o, err
}

func run(ctx context.Context, args []string, out, errs io.Writer) (err error) {
	o, err := parse(args, errs)
	if err != nil {
		return err
	}
	if o.warm > 0 {
		return warm(o.warm)
	}
	dir, err := os.MkdirTemp(o.dir, "stasis-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	b, err := prepare(ctx, dir, o, errs)
	if err != nil {
		return err
	}
	results, err := b.all(ctx, errs)
	if len(results) == 0 {
		return err
	}
	if o.json {
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		return errors.Join(err, enc.Encode(results))
	}
	return errors.Join(err, table(out, results))
}

// prepare builds what the rounds need.
func prepare(ctx context.Context, dir string, o options, errs io.Writer) (*bench, error) {
	if err := box.Adopt(); err != nil {
		return nil, err
	}
	root, err := moduleRoot(ctx)
	if err != nil {
		return nil, err
	}
	b := &bench{dir: dir, options: o}
	if b.programs, err = box.Build(ctx, filepath.Join(root, "integration", "progs"), dir); err != nil {
		return nil, err
	}
	if b.programs.Shell, err = exec.LookPath("busybox"); err != nil {
		return nil, err
	}
	if o.stasis == "" {
		o.stasis = filepath.Join(dir, "stasis")
		if err := box.GoBuild(ctx, filepath.Join(root, "cmd", "stasis"), o.stasis); err != nil {
			return nil, err
		}
	}
	runc, err := exec.LookPath("runc")
	if err != nil {
		return nil, err
	}
	b.engines = []engine{{ours, box.Engine{Runtime: runc, Save: o.stasis}}}
	if !o.peer {
		return b, nil
	}
	if why := exec.CommandContext(ctx, "criu", "check").Run(); why != nil {
		fmt.Fprintln(errs, "no peer: criu check:", why)
		return b, nil
	}
	b.engines = append(b.engines, engine{peer, box.Engine{Runtime: runc, Save: runc}})
	return b, nil
}

// moduleRoot is the folder of go.mod.
func moduleRoot(ctx context.Context) (string, error) {
	path, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return "", fmt.Errorf("go list: %w", err)
	}
	return strings.TrimSpace(string(path)), nil
}
