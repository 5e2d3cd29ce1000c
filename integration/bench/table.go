package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

func millis(d instant) float64 { return float64(d) / 1e6 }

func mebis(n int64) float64 { return float64(n) / (1 << 20) }

// results finds one by case and engine.
type results []Result

func (all results) of(name, engine string) (Result, bool) {
	for _, r := range all {
		if r.Case == name && r.Engine == engine {
			return r, true
		}
	}
	return Result{}, false
}

// table prints one line for each figure of each case: ours, the peer's, how many
// times ours that is, and the goals.
func table(w io.Writer, tests []test, all results) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "case\tfigure\t"+ours+"\t"+peer+"\tratio\tgoal")
	for _, c := range tests {
		us, ok := all.of(c.name, ours)
		if ok && us.Missing != "" {
			fmt.Fprintf(t, "%s\t-\t-\t-\t-\tnot available: %s\n", c.name, us.Missing)
			continue
		}
		for _, f := range c.show {
			fmt.Fprintln(t, strings.Join(append([]string{c.name, string(f)}, all.cells(c, f)...), "\t"))
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintln(w, "ratio: the peer's figure divided by ours")
	return err
}

// cells are the figures of one line; what was not measured is a dash.
func (all results) cells(c test, f figure) []string {
	us, okUs := all.figure(c.name, ours, f)
	them, okThem := all.figure(c.name, peer, f)
	out := []string{"-", "-", "-", ""}
	if okUs {
		out[0] = number(us)
	}
	if okThem {
		out[1] = number(them)
	}
	if okUs && okThem && us > 0 {
		out[2] = number(them/us) + "x"
	}
	var goals []string
	for _, g := range c.goals {
		if g.figure == f {
			goals = append(goals, all.judge(c, g))
		}
	}
	out[3] = strings.Join(goals, ", ")
	return out
}

func (all results) figure(name, engine string, f figure) (float64, bool) {
	r, ok := all.of(name, engine)
	if !ok {
		return 0, false
	}
	v, ok := r.Figures[f]
	return v, ok
}

// judge says what a goal is and whether it was reached, where that can be told.
func (all results) judge(c test, g goal) string {
	us, okUs := all.figure(c.name, ours, g.figure)
	verdict := func(known, good bool) string {
		switch {
		case !known || !okUs:
			return ""
		case good:
			return " yes"
		}
		return " NO"
	}
	switch {
	case g.than != "":
		other, ok := all.figure(g.than, ours, g.figure)
		return fmt.Sprintf("<= %sx of %q", number(g.most), g.than) + verdict(ok, us <= g.most*other)
	case g.most > 0:
		return "<= " + number(g.most) + verdict(true, us <= g.most)
	case g.least > 0:
		return ">= " + number(g.least) + verdict(true, us >= g.least)
	}
	them, ok := all.figure(c.name, peer, g.figure)
	return "ratio >= " + number(g.times) + verdict(ok, them >= g.times*us)
}

// number is short, and as precise as a measurement is.
func number(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}
