package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/stasis-cr/stasis/integration/progs/box"
	"golang.org/x/sys/unix"
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

// size is one case: a container of so much random memory.
type size struct {
	name                string
	mib, threads, procs int
	program             []string // instead of load
}

func sizes() []size {
	return []size{
		{name: "shell", threads: 1, procs: 1},
		{name: "64 MiB", mib: 64, threads: 1, procs: 1},
		{name: "1 GiB", mib: 1024, threads: 1, procs: 1},
		{name: "1 GiB huge", mib: 1024, program: []string{"load", "1024", "1", "1", "huge"}},
		{name: "pre-forked", mib: 64, program: []string{"prefork", "64", "8"}},
		{name: "1 thread", threads: 1, procs: 1},
		{name: "10 threads", threads: 10, procs: 1},
		{name: "100 threads", threads: 100, procs: 1},
		{name: "1 process", threads: 1, procs: 1},
		{name: "10 processes", threads: 1, procs: 10},
		{name: "100 processes", threads: 1, procs: 100},
	}
}

// args is the command of a case's container.
func (s size) args() []string {
	if s.name == "shell" {
		const loop = "echo > /ctl/ready; until [ -e /ctl/go ]; do sleep 0.1; done; echo ok > /ctl/result"
		return []string{"/bin/sh", "-c", loop}
	}
	if s.program != nil {
		return append([]string{"/bin/cprogs"}, s.program...)
	}
	return []string{"/bin/cprogs", "load", strconv.Itoa(s.mib), strconv.Itoa(s.threads), strconv.Itoa(s.procs)}
}

// sample is one round of one engine.
type sample struct {
	frozen, seen, checkpoint, restore time.Duration
	image                             int64
}

// Result is one engine's medians for one case. Times are nanoseconds.
type Result struct {
	Case       string        `json:"case"`
	Engine     string        `json:"engine"`
	Rounds     int           `json:"rounds"`
	Frozen     time.Duration `json:"frozen_ns"`
	Seen       time.Duration `json:"seen_ns"`
	Checkpoint time.Duration `json:"checkpoint_ns"`
	Restore    time.Duration `json:"restore_ns"`
	Image      int64         `json:"image_bytes"`
}

type bench struct {
	options
	dir      string
	programs box.Programs
	engines  []engine
	serial   int
}

// all runs every case. What went wrong in one does not stop the others.
func (b *bench) all(ctx context.Context, errs io.Writer) ([]Result, error) {
	var results []Result
	var failed error
	for _, s := range sizes() {
		if !b.cases.MatchString(s.name) {
			continue
		}
		fmt.Fprintf(errs, "%s: %d rounds\n", s.name, b.rounds)
		got, err := b.oneCase(ctx, s)
		results = append(results, got...)
		if err != nil {
			fmt.Fprintf(errs, "%s: %v\n", s.name, err)
			failed = errors.New("not every case could be measured")
		}
		if ctx.Err() != nil {
			return results, context.Cause(ctx)
		}
	}
	return results, failed
}

// oneCase runs the rounds of one case. An engine that fails once is out.
func (b *bench) oneCase(ctx context.Context, s size) ([]Result, error) {
	samples := make([][]sample, len(b.engines))
	failed := make([]error, len(b.engines))
	for range b.rounds {
		for i, e := range b.engines {
			if failed[i] != nil {
				continue
			}
			got, err := b.once(ctx, e, s)
			if err != nil {
				failed[i] = fmt.Errorf("%s: %w", e.name, err)
				continue
			}
			samples[i] = append(samples[i], got)
		}
	}
	var results []Result
	for i, e := range b.engines {
		if failed[i] == nil {
			results = append(results, summary(s.name, e.name, samples[i]))
		}
	}
	return results, errors.Join(failed...)
}

func summary(name, engine string, all []sample) Result {
	return Result{
		Case: name, Engine: engine, Rounds: len(all),
		Frozen:     median(all, func(s sample) time.Duration { return s.frozen }),
		Seen:       median(all, func(s sample) time.Duration { return s.seen }),
		Checkpoint: median(all, func(s sample) time.Duration { return s.checkpoint }),
		Restore:    median(all, func(s sample) time.Duration { return s.restore }),
		Image:      median(all, func(s sample) int64 { return s.image }),
	}
}

// median is the middle value, the lower of two.
func median[T int64 | time.Duration](all []sample, of func(sample) T) T {
	values := make([]T, len(all))
	for i, s := range all {
		values[i] = of(s)
	}
	slices.Sort(values)
	return values[(len(values)-1)/2]
}

// once is one round: a container runs, is saved and runs on; it is killed,
// restored from the image, and checks itself.
func (b *bench) once(ctx context.Context, e engine, s size) (got sample, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if err := warm(2*s.mib + 256); err != nil {
		return got, err
	}
	b.serial++
	dir := filepath.Join(b.dir, strconv.Itoa(b.serial))
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := os.Mkdir(dir, 0o755); err != nil {
		return got, err
	}
	c := box.Config{Args: s.args(), Caps: box.DefaultCaps(), HostNet: true}
	if e.name == peer {
		c.Env = []string{"ALLOW_EINTR=1"} // its restored sleeps end with EINTR
	}
	bx, err := box.New(ctx, dir, fmt.Sprintf("bench-%d-%d", os.Getpid(), b.serial), e.Engine, b.programs, c)
	if err != nil {
		return got, err
	}
	defer func() { err = errors.Join(err, bx.Remove(context.WithoutCancel(ctx))) }()
	if err := bx.Run(ctx); err != nil {
		return got, err
	}
	if err := bx.AwaitReady(ctx); err != nil {
		return got, err
	}
	image := filepath.Join(dir, "image")
	if got, err = save(ctx, bx, image); err != nil {
		return got, err
	}
	if err := bx.Remove(ctx); err != nil {
		return got, err
	}
	start := time.Now()
	if err := bx.Restore(ctx, image); err != nil {
		return got, err
	}
	got.restore = time.Since(start)
	return got, bx.Go(ctx)
}

// save makes the checkpoint.
func save(ctx context.Context, b *box.Box, image string) (got sample, err error) {
	gap, err := os.OpenFile(b.Path("ctl", "gap"), os.O_RDWR|os.O_CREATE, 0o666)
	if err != nil {
		return got, err
	}
	defer func() { err = errors.Join(err, gap.Close()) }()
	if _, err := gap.WriteAt(make([]byte, 8), 0); err != nil {
		return got, err
	}
	start := time.Now()
	if err := b.Checkpoint(ctx, image, "--leave-running"); err != nil {
		return got, err
	}
	got.checkpoint = time.Since(start)
	seen := make([]byte, 8)
	if _, err := gap.ReadAt(seen, 0); err != nil {
		return got, err
	}
	got.seen = time.Duration(binary.NativeEndian.Uint64(seen))
	if got.frozen, err = frozen(filepath.Join(image, "stats-dump")); err != nil {
		return got, err
	}
	got.image, err = bytesIn(image)
	return got, err
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

// warm makes the host back so much memory, and gives it back to our kernel.
func warm(mib int) error {
	b, err := unix.Mmap(-1, 0, mib<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_POPULATE)
	if err != nil {
		return fmt.Errorf("warm up %d MiB: %w", mib, err)
	}
	return unix.Munmap(b)
}
