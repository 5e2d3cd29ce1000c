package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/stasis-cr/stasis/integration/harness"
)

const (
	baseRef = "demo.stasis.dev/busybox:1"
	warmRef = "demo.stasis.dev/counter:warm"
	id      = "counter"

	// counter keeps its number nowhere but in the shell's variable i.
	counter = `i=0; while :; do i=$((i+1)); echo $i >> /count; usleep 50000; done`

	// patience bounds each wait; an idle machine needs a second.
	patience = 30 * time.Second
)

// demo is the state that the steps share.
type demo struct {
	dir  string
	bins harness.Bins
	a, b *harness.Containerd
	file string // the exported image
	rows []row

	saved     int // the last number in the image's files
	continued int // the number after it
	last      int
}

type step struct {
	name string
	do   func(context.Context) (detail string, err error)
}

type row struct {
	name   string
	took   time.Duration
	detail string
}

func (d *demo) steps() []step {
	return []step{
		{"build stasis and its shim", d.build},
		{"start containerd A", d.startA},
		{"run the counter in A", d.runCounter},
		{"checkpoint into an OCI image", d.checkpoint},
		{"kill and delete the counter", d.remove},
		{"export the image", d.export},
		{"start containerd B", d.startB},
		{"import the image", d.importImage},
		{"restore the counter in B", d.restore},
		{"watch it go on", d.watch},
	}
}

// take does a step and says so at once; the table comes at the end.
func (d *demo) take(ctx context.Context, s step) error {
	start := time.Now()
	detail, err := s.do(ctx)
	if err != nil {
		return err
	}
	d.rows = append(d.rows, row{s.name, time.Since(start), detail})
	fmt.Printf("%s: %s\n", s.name, detail)
	return nil
}

func (d *demo) build(ctx context.Context) (string, error) {
	dir := filepath.Join(d.dir, "bin")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	var err error
	d.bins, err = harness.BuildIn(ctx, dir)
	return "done", err
}

func (d *demo) start(ctx context.Context, name string) (*harness.Containerd, error) {
	dir := filepath.Join(d.dir, name)
	if err := os.Mkdir(dir, 0o711); err != nil {
		return nil, err
	}
	c, err := harness.StartContainerd(ctx, harness.Config{
		Dir: dir, Bins: d.bins, Name: filepath.Base(d.dir) + "-" + name,
	})
	if err != nil {
		return nil, err
	}
	files, err := harness.Busybox(ctx)
	if err == nil {
		err = c.Import(ctx, harness.Image{
			Ref:   baseRef,
			Files: append(files, harness.Base()...),
			Cmd:   []string{"/bin/sh", "-c", counter},
			Env:   []string{"PATH=/bin"},
		})
	}
	return c, err
}

func (d *demo) startA(ctx context.Context) (_ string, err error) {
	d.a, err = d.start(ctx, "a")
	return "with a busybox image made of this host's", err
}

func (d *demo) startB(ctx context.Context) (_ string, err error) {
	d.b, err = d.start(ctx, "b")
	return "with the same base image, and a root, state and socket of its own", err
}

func (d *demo) runCounter(ctx context.Context) (string, error) {
	line := append([]string{"run", "-d", "--null-io", "--runtime", harness.RuntimeName}, harness.RunArgs()...)
	if _, err := d.a.Ctr(ctx, append(line, baseRef, id)...); err != nil {
		return "", err
	}
	n, err := waitPast(ctx, d.a, 20)
	return fmt.Sprintf("it has counted to %d", n), err
}

func (d *demo) checkpoint(ctx context.Context) (string, error) {
	_, err := d.a.Ctr(ctx, "containers", "checkpoint", "--image", "--task", "--rw", id, warmRef)
	return warmRef, err
}

func (d *demo) remove(ctx context.Context) (string, error) {
	numbers, err := count(ctx, d.a)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("it had counted on to %d meanwhile", len(numbers)), d.a.Remove(ctx, id)
}

func (d *demo) export(ctx context.Context) (string, error) {
	d.file = filepath.Join(d.dir, "warm.tar")
	if _, err := d.a.Ctr(ctx, append(harness.ExportArgs(), d.file, warmRef)...); err != nil {
		return "", err
	}
	info, err := os.Stat(d.file)
	if err != nil {
		return "", err
	}
	parts, err := d.readImage(ctx)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s; the tasks are %s of it, the changed files %s and end at %d",
		size(info.Size()), size(parts.tasks), size(parts.files), d.saved), nil
}

func (d *demo) importImage(ctx context.Context) (string, error) {
	_, err := d.b.Ctr(ctx, append(harness.ImportArgs(), d.file)...)
	return warmRef, err
}

func (d *demo) restore(ctx context.Context) (string, error) {
	_, err := d.b.Ctr(ctx, "containers", "restore", "--rw", "--live", id, warmRef)
	return "running", err
}

func (d *demo) watch(ctx context.Context) (string, error) {
	last, err := waitPast(ctx, d.b, d.saved+20)
	if err != nil {
		return "", err
	}
	numbers, err := count(ctx, d.b)
	if err != nil {
		return "", err
	}
	d.continued, d.last = numbers[d.saved], last
	return fmt.Sprintf("%s, and so on to %d", strings.Join(words(numbers[d.saved:d.saved+5]), ", "), d.last), nil
}

// count reads the counter's file, in which no number may be missing or doubled.
func count(ctx context.Context, c *harness.Containerd) ([]int, error) {
	out, err := c.Ask(ctx, id, "cat", "/count")
	if err != nil {
		return nil, err
	}
	return parseCount(out)
}

func parseCount(s string) ([]int, error) {
	var numbers []int
	for f := range strings.FieldsSeq(s) {
		n, err := strconv.Atoi(f)
		if err != nil || n != len(numbers)+1 {
			return nil, fmt.Errorf("the count goes %d, %q", len(numbers), f)
		}
		numbers = append(numbers, n)
	}
	return numbers, nil
}

func waitPast(ctx context.Context, c *harness.Containerd, n int) (last int, err error) {
	err = harness.Poll(ctx, patience, fmt.Sprintf("count past %d", n), func() (bool, error) {
		numbers, err := count(ctx, c)
		last = len(numbers)
		return last > n, err
	})
	return last, err
}

func words(numbers []int) []string {
	var w []string
	for _, n := range numbers {
		w = append(w, strconv.Itoa(n))
	}
	return w
}

func size(n int64) string {
	if n < 1<<20 {
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
}

func (d *demo) print() {
	fmt.Println()
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 3, ' ', 0)
	for _, r := range d.rows {
		fmt.Fprintf(w, "%s\t%d ms\t%s\n", r.name, r.took.Milliseconds(), r.detail)
	}
	w.Flush()
}

// verdict is the demo's claim: the first number after the image's last is the
// next one, so the shell's variable came through.
func (d *demo) verdict() error {
	if d.continued != d.saved+1 {
		return fmt.Errorf("the count went from %d to %d", d.saved, d.continued)
	}
	fmt.Printf("\nThe count stopped at %d in A and went on with %d in B.\n", d.saved, d.continued)
	return nil
}

// cleanUp takes away everything, whatever of it there is. B goes first: its
// container is in the cgroup that it had in A, as containerd restores it.
func (d *demo) cleanUp(ctx context.Context) error {
	var errs []error
	for _, c := range []*harness.Containerd{d.b, d.a} {
		if c != nil {
			errs = append(errs, c.Stop(ctx))
		}
	}
	return errors.Join(append(errs, os.RemoveAll(d.dir))...)
}
