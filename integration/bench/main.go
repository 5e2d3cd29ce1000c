// Command bench measures checkpoint and restore of containers of several kinds and
// sizes, beside runc with CRIU in the same run if a criu that works is on PATH,
// and prints the goals of the project beside the figures (see the type figure).
//
// Every figure is the median of n rounds. The engines take turns within a round,
// and memory is warmed up before each: in a virtual machine the first touch of a
// page that the host has not backed yet is slower than anything that is measured.
// A case that needs a flag that the engine does not have is said to be not
// available. With -quick all is small: the figures mean nothing then, but every
// step is made.
//
// It needs root, runc, a static busybox, gcc and the go command, redis-server and
// Python 3 for the cases that are about them, for all cases 24 GiB of memory, and
// is run in the module's tree.
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

	"github.com/stasis-cr/stasis/integration/harness"
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
	quick  bool
	dir    string
	disk   string
	stasis string
	peer   bool
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
	f.BoolVar(&o.quick, "quick", false, "small sizes: to see whether all runs")
	f.StringVar(&o.disk, "disk", "/var/tmp", "folder on a disk, for the images that are meant for one")
	f.StringVar(&o.dir, "dir", "/dev/shm", "folder for containers and images; best a tmpfs")
	f.StringVar(&o.stasis, "stasis", "", "the stasis command; built from source if empty")
	f.BoolVar(&o.peer, "peer", true, "measure runc with CRIU, too, if it is on PATH and works")
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
	dir, err := os.MkdirTemp(o.dir, "stasis-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if o.disk, err = os.MkdirTemp(o.disk, "stasis-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(o.disk)) }()
	b, err := prepare(ctx, dir, o, errs)
	if err != nil {
		return err
	}
	tests := wanted(o)
	all, err := b.all(ctx, tests, errs)
	if len(all) == 0 {
		return err
	}
	if o.json {
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		return errors.Join(err, enc.Encode(all))
	}
	return errors.Join(err, table(out, tests, all))
}

// prepare builds what the rounds need.
func prepare(ctx context.Context, dir string, o options, errs io.Writer) (*bench, error) {
	if err := box.Adopt(); err != nil {
		return nil, err
	}
	root, err := harness.RepoRoot()
	if err != nil {
		return nil, err
	}
	b := &bench{dir: dir, options: o}
	if b.programs, err = box.Build(ctx, filepath.Join(root, "integration", "progs"), dir); err != nil {
		return nil, err
	}
	if b.programs.Shell, err = harness.Tool("busybox"); err != nil {
		return nil, err
	}
	if o.stasis == "" {
		o.stasis = filepath.Join(dir, "stasis")
		if err := box.GoBuild(ctx, filepath.Join(root, "cmd", "stasis"), o.stasis); err != nil {
			return nil, err
		}
	}
	runc, err := harness.Tool("runc")
	if err != nil {
		return nil, err
	}
	b.engines = []engine{{ours, box.Engine{Runtime: runc, Save: o.stasis, Flags: []string{"--runtime", runc}}}}
	if !o.peer {
		return b, nil
	}
	if why := exec.CommandContext(ctx, "criu", "check").Run(); why != nil {
		fmt.Fprintln(errs, "no peer: criu check:", why)
		return b, nil
	}
	b.engines = append(b.engines, engine{peer, box.Engine{Runtime: runc, Save: runc}})
	if _, err := exec.LookPath("iptables-restore"); err != nil {
		fmt.Fprintln(errs, "no iptables, with which criu locks a network: containers have the host's, not one of their own")
		b.hostNet = true
	}
	return b, nil
}
