package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/stasis-cr/stasis/integration/harness"
	"github.com/stasis-cr/stasis/integration/progs/box"
)

// Names of the engines in the results.
const (
	ours = "stasis"
	peer = "criu"
)

type engine struct {
	name string
	box.Engine
}

// figures are what one round of one engine came to.
type figures map[figure]float64

// Result is one engine's medians for one case.
type Result struct {
	Case    string  `json:"case"`
	Engine  string  `json:"engine"`
	Rounds  int     `json:"rounds"`
	Missing string  `json:"missing,omitempty"` // the flags that our engine does not have
	Figures figures `json:"figures,omitempty"`
}

type bench struct {
	options
	dir      string
	programs box.Programs
	engines  []engine
	serial   int
	hostNet  bool // containers have the host's network
}

// all runs every case. What went wrong in one does not stop the others.
func (b *bench) all(ctx context.Context, tests []test, errs io.Writer) ([]Result, error) {
	var results []Result
	var failed error
	for _, t := range tests {
		if missing := b.missing(ctx, t); missing != "" {
			results = append(results, Result{Case: t.name, Engine: ours, Missing: missing})
			continue
		}
		fmt.Fprintf(errs, "%s: %d rounds\n", t.name, b.rounds)
		got, err := b.oneCase(ctx, t)
		results = append(results, got...)
		if err != nil {
			fmt.Fprintf(errs, "%s: %v\n", t.name, err)
			failed = errors.New("not every case could be measured")
		}
		if ctx.Err() != nil {
			return results, context.Cause(ctx)
		}
	}
	return results, failed
}

// missing are the flags of a case that our engine does not have.
func (b *bench) missing(ctx context.Context, t test) string {
	save := t.save
	if t.change > 0 {
		save = slices.Concat(save, parent())
	}
	for verb, flags := range map[string][]string{"checkpoint": save, "restore": t.back} {
		if len(flags) > 0 && !b.engines[0].Knows(ctx, verb, flags...) {
			return fmt.Sprintf("stasis %s %s", verb, strings.Join(flags, " "))
		}
	}
	return ""
}

// parent are the flags of the second checkpoint. As runc has it, the path is
// seen from the image's.
func parent() []string { return []string{"--parent-path", "../image"} }

// oneCase runs the rounds of one case. An engine that fails once is out.
func (b *bench) oneCase(ctx context.Context, t test) ([]Result, error) {
	engines := b.engines
	if t.alone {
		engines = engines[:1]
	}
	rounds := make([][]figures, len(engines))
	failed := make([]error, len(engines))
	for range b.rounds {
		for i, e := range engines {
			if failed[i] != nil {
				continue
			}
			got, err := b.once(ctx, e, t)
			if err != nil {
				failed[i] = fmt.Errorf("%s: %w", e.name, err)
				continue
			}
			rounds[i] = append(rounds[i], got)
		}
	}
	var results []Result
	for i, e := range engines {
		if failed[i] == nil {
			results = append(results, Result{Case: t.name, Engine: e.name, Rounds: b.rounds, Figures: medians(rounds[i])})
		}
	}
	return results, errors.Join(failed...)
}

// medians are the middle values of each figure, the lower of two.
func medians(rounds []figures) figures {
	all := map[figure][]float64{}
	for _, r := range rounds {
		for f, v := range r {
			all[f] = append(all[f], v)
		}
	}
	out := figures{}
	for f, values := range all {
		slices.Sort(values)
		out[f] = values[(len(values)-1)/2]
	}
	return out
}

// round is one container of one engine.
type round struct {
	*box.Box
	test test
	save []string // flags of the engine
	back []string
	dir  string // of the images
	got  figures
}

// once is one round: a container runs, is saved and runs on; it is killed,
// restored from the image, and checks itself.
func (b *bench) once(ctx context.Context, e engine, t test) (_ figures, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	if err := b.warm(ctx, t.mib+256); err != nil {
		return nil, err
	}
	b.serial++
	name := fmt.Sprintf("bench-%d-%d", os.Getpid(), b.serial)
	r := &round{test: t, dir: filepath.Join(b.dir, name), got: figures{}}
	bundle := filepath.Join(r.dir, "bundle")
	if t.disk {
		r.dir = filepath.Join(b.disk, name)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(r.dir), os.RemoveAll(filepath.Dir(bundle))) }()
	if err := errors.Join(os.MkdirAll(bundle, 0o755), os.MkdirAll(r.dir, 0o755)); err != nil {
		return nil, err
	}
	c := box.Config{Args: t.args, Caps: box.DefaultCaps(), HostNet: b.hostNet}
	if e.name == peer {
		c.Env = []string{"ALLOW_EINTR=1"} // its restored sleeps end with EINTR
	} else {
		r.save, r.back = t.save, t.back
	}
	e.Wrap = []string{b.programs.C, "peak", filepath.Join(r.dir, "peak")}
	if r.Box, err = box.New(ctx, bundle, name, e.Engine, b.programs, c); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Remove(context.WithoutCancel(ctx))) }()
	return r.got, r.run(ctx)
}

func (r *round) run(ctx context.Context) error {
	if err := r.install(ctx); err != nil {
		return err
	}
	if err := r.Run(ctx); err != nil {
		return err
	}
	if err := r.AwaitReady(ctx); err != nil {
		return err
	}
	if err := r.first(ctx); err != nil {
		return err
	}
	if r.test.change > 0 {
		if err := r.second(ctx); err != nil {
			return err
		}
	}
	if !r.test.stay {
		if err := r.restore(ctx); err != nil {
			return err
		}
	}
	return r.Go(ctx)
}

// install puts what the case needs into the root file system.
func (r *round) install(ctx context.Context) error {
	for _, list := range r.test.files {
		files, err := list(ctx)
		if err != nil {
			return err
		}
		for _, f := range files {
			if err := r.put(f); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *round) put(f harness.File) error {
	body, err := os.ReadFile(f.Source)
	if err != nil {
		return err
	}
	to := r.Path(f.Path)
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return os.WriteFile(to, body, f.Mode)
}

func (r *round) samples() (samples, error) { return readSamples(r.Path("ctl", "samples")) }

// steady is how long a container works before its work is judged.
const steady = time.Second

// settle waits until the container has worked for a while, and returns the point
// of time from which on.
func (r *round) settle(ctx context.Context) (instant, error) {
	from := clock()
	return from, box.Poll(ctx, func() (bool, error) {
		s, err := r.samples()
		return err != nil || s == nil || len(s) > 0 && s[len(s)-1].at > from+instant(steady), err
	})
}

// first makes the checkpoint and looks at what it did to the container.
func (r *round) first(ctx context.Context) error {
	before, err := r.settle(ctx)
	if err != nil {
		return err
	}
	start := clock()
	path := filepath.Join(r.dir, "image")
	if err := r.Checkpoint(ctx, path, append([]string{"--leave-running"}, r.save...)...); err != nil {
		return err
	}
	end := clock()
	r.got[checkpoint] = millis(end - start)
	if err := r.peak(); err != nil {
		return err
	}
	if r.test.disk {
		if err := syncFiles(path); err != nil {
			return err
		}
		r.got[synced] = millis(clock() - start)
	}
	still, err := frozenIn(filepath.Join(path, "stats-dump"))
	if err != nil {
		return err
	}
	r.got[frozen] = millis(instant(still))
	size, err := bytesIn(path)
	if err != nil {
		return err
	}
	r.got[image] = mebis(size)
	return r.noticed(ctx, before, start, end)
}

// peak looks how much memory the engine had in its last command.
func (r *round) peak() error {
	path := filepath.Join(r.dir, "peak")
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	kib, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	r.got[memory] = max(r.got[memory], mebis(kib<<10))
	return nil
}

// noticed reads what the container itself noted of its checkpoint.
func (r *round) noticed(ctx context.Context, before, start, end instant) error {
	var s samples
	err := box.Poll(ctx, func() (_ bool, err error) {
		s, err = r.samples()
		return s == nil || s.after(end) < len(s), err
	})
	if err != nil || s == nil {
		return err
	}
	r.got[seen] = millis(instant(s.longest(start, end)))
	r.got[lost] = s.lost(before, start, end)
	return nil
}

// second has the container change some pages and makes another checkpoint.
func (r *round) second(ctx context.Context) error {
	if err := os.WriteFile(r.Path("ctl", "change"), nil, 0o644); err != nil {
		return err
	}
	err := box.Poll(ctx, func() (bool, error) {
		_, err := os.Stat(r.Path("ctl", "changed"))
		if errors.Is(err, os.ErrNotExist) {
			return false, nil
		}
		return true, err
	})
	if err != nil {
		return err
	}
	path := filepath.Join(r.dir, "second")
	start := clock()
	if err := r.Checkpoint(ctx, path, append([]string{"--leave-running"}, parent()...)...); err != nil {
		return err
	}
	r.got[again] = millis(clock() - start)
	r.got[speedup] = r.got[checkpoint] / r.got[again]
	if err := r.peak(); err != nil {
		return err
	}
	size, err := bytesIn(path)
	r.got[spent] = float64(size) / float64(r.test.change)
	return err
}

// restore brings the container back, after it was killed, in the same bundle.
func (r *round) restore(ctx context.Context) error {
	if err := r.Remove(ctx); err != nil {
		return err
	}
	start := clock()
	if err := r.Restore(ctx, filepath.Join(r.dir, "image"), r.back...); err != nil {
		return err
	}
	end := clock()
	r.got[restore] = millis(end - start)
	if err := r.peak(); err != nil {
		return err
	}
	return box.Poll(ctx, func() (bool, error) {
		s, err := r.samples()
		if err != nil || s == nil {
			return true, err
		}
		i := s.after(start)
		if i == len(s) {
			return false, nil
		}
		r.got[first] = millis(s[i].at - start)
		return true, nil
	})
}

// syncFiles has the disk write the files of a folder.
func syncFiles(dir string) error {
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		if err := syncFile(filepath.Join(dir, f.Name())); err != nil {
			return err
		}
	}
	return nil
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// bytesIn is the size of all files of a folder that make the image.
func bytesIn(dir string) (int64, error) {
	files, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	var sum int64
	for _, f := range files {
		if filepath.Ext(f.Name()) == ".log" {
			continue
		}
		info, err := f.Info()
		if err != nil {
			return 0, err
		}
		sum += info.Size()
	}
	return sum, nil
}

// warm has the host back so much memory.
func (b *bench) warm(ctx context.Context, mib int) error {
	out, err := exec.CommandContext(ctx, b.programs.C, "warm", strconv.Itoa(mib)).CombinedOutput()
	if err != nil {
		return fmt.Errorf("warm up %d MiB: %w: %s", mib, err, out)
	}
	return nil
}

// wanted are the cases that were asked for.
func wanted(o options) []test {
	z := fullScale()
	if o.quick {
		z = quickScale()
	}
	return slices.DeleteFunc(cases(z), func(t test) bool { return !o.cases.MatchString(t.name) })
}
