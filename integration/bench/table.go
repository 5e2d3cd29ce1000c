package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
)

// column is one figure of the table.
type column struct {
	name string
	of   func(Result) float64
	show func(Result) string
}

func columns() []column {
	of := func(name string, d func(Result) time.Duration) column {
		return column{name, func(r Result) float64 { return float64(d(r)) }, func(r Result) string { return millis(d(r)) }}
	}
	return []column{
		of("frozen", func(r Result) time.Duration { return r.Frozen }),
		of("seen", func(r Result) time.Duration { return r.Seen }),
		of("checkpoint", func(r Result) time.Duration { return r.Checkpoint }),
		of("restore", func(r Result) time.Duration { return r.Restore }),
		{"image", func(r Result) float64 { return float64(r.Image) }, func(r Result) string { return mebis(r.Image) }},
		{"memory", func(r Result) float64 { return float64(r.Memory) }, func(r Result) string { return mebis(r.Memory) }},
	}
}

func millis(d time.Duration) string { return fmt.Sprintf("%.1f", float64(d)/float64(time.Millisecond)) }

func mebis(n int64) string { return fmt.Sprintf("%.2f", float64(n)/(1<<20)) }

// table prints one line for each case: ours, and with a peer in the run the
// peer's and how many times ours that is.
func table(w io.Writer, results []Result) error {
	byCase, names, withPeer := group(results)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	head := []string{"case"}
	for _, c := range columns() {
		head = append(head, c.name)
		if withPeer {
			head = append(head, peer, "ratio")
		}
	}
	fmt.Fprintln(t, strings.Join(head, "\t")+"\t")
	for _, name := range names {
		line := []string{name}
		for _, c := range columns() {
			line = append(line, cells(c, byCase[name], withPeer)...)
		}
		fmt.Fprintln(t, strings.Join(line, "\t")+"\t")
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintln(w, "times in ms, image and memory in MiB; ratio: the peer's figure divided by ours")
	return err
}

func group(results []Result) (byCase map[string]map[string]Result, names []string, withPeer bool) {
	byCase = map[string]map[string]Result{}
	for _, r := range results {
		if byCase[r.Case] == nil {
			byCase[r.Case] = map[string]Result{}
			names = append(names, r.Case)
		}
		byCase[r.Case][r.Engine] = r
		withPeer = withPeer || r.Engine == peer
	}
	return byCase, names, withPeer
}

// cells are one column of one line; what was not measured is a dash.
func cells(c column, of map[string]Result, withPeer bool) []string {
	us, okUs := of[ours]
	them, okThem := of[peer]
	out := []string{"-"}
	if okUs {
		out[0] = c.show(us)
	}
	if !withPeer {
		return out
	}
	out = append(out, "-", "-")
	if okThem {
		out[1] = c.show(them)
	}
	if okUs && okThem && c.of(us) > 0 {
		out[2] = fmt.Sprintf("%.1fx", c.of(them)/c.of(us))
	}
	return out
}
