package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

const about = `stasis saves the state of running OCI containers and goes on from it, later
or elsewhere. Its command line is that of runc. Commands that are not listed
here (create, start, exec, kill, delete and the others) are those of the host's
OCI runtime, which is started for them.`

// help prints the help of one verb, or of all.
func (a *app) help(g *global, args []string) error {
	if len(args) == 0 {
		return a.generalHelp(g)
	}
	for _, c := range a.commands(g) {
		if c.name == args[0] {
			return a.commandHelp(c)
		}
	}
	return a.passThrough(g, append([]string{"help"}, args...))
}

func (a *app) generalHelp(g *global) error {
	return page(a.out, func(w io.Writer) {
		fmt.Fprintf(w, "NAME:\n   stasis - checkpoint and restore of OCI containers\n\n%s\n\n", about)
		fmt.Fprint(w, "USAGE:\n   stasis [global options] command [command options] [arguments...]\n\nCOMMANDS:\n")
		for _, c := range a.commands(g) {
			fmt.Fprintf(w, "   %s\t%s\n", c.name, c.summary)
		}
		fmt.Fprint(w, "   help, h\tshow this list, or the help of one command\n\nGLOBAL OPTIONS:\n")
		printOptions(w, (&global{}).options())
	})
}

func (a *app) commandHelp(c *command) error {
	return page(a.out, func(w io.Writer) {
		fmt.Fprintf(w, "NAME:\n   stasis %s - %s\n\n", c.name, c.summary)
		fmt.Fprintf(w, "USAGE:\n   stasis %s\n\n", strings.TrimSpace(c.name+" [command options] "+c.args))
		fmt.Fprintf(w, "DESCRIPTION:\n   %s\n", strings.ReplaceAll(c.about, "\n", "\n   "))
		if len(c.options) > 0 {
			fmt.Fprint(w, "\nOPTIONS:\n")
			printOptions(w, c.options)
		}
	})
}

// printOptions prints a table in the manner of this ecosystem's tools.
func printOptions(w io.Writer, options []option) {
	for _, o := range append(options, with("h", on(new(bool), "help", "show help"))) {
		if o.quiet {
			continue
		}
		value := ""
		if o.takes {
			value = " value"
		}
		names := "--" + o.name + value
		if o.short != "" {
			names += ", -" + o.short + value
		}
		fmt.Fprintf(w, "   %s\t%s\n", names, o.usage)
	}
}

// page writes through columns and reports the one error that matters.
func page(out io.Writer, body func(io.Writer)) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	body(w)
	return w.Flush()
}
