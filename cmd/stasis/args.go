package main

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/stasis-cr/stasis/cr/errs"
)

// errHelp is what parse answers to --help.
var errHelp = errors.New("help requested")

// option is one flag. One dash or two, a value behind "=" or in the next
// argument: all mean the same, since go-runc sends -no-subreaper where a human
// writes --no-subreaper.
type option struct {
	name  string
	short string // "" if there is none
	usage string
	takes bool // a value; without, "=true" and "=false" are still allowed
	ours  bool // a global flag that the runtime does not know
	quiet bool // not in help: accepted because a caller sends it
	set   func(value string) error
}

// text is an option whose value goes to p.
func text(p *string, name, usage string) option {
	return option{name: name, usage: usage, takes: true, set: func(v string) error {
		*p = v
		return nil
	}}
}

// on is a switch.
func on(p *bool, name, usage string) option {
	return option{name: name, usage: usage, set: func(v string) error {
		b, err := strconv.ParseBool(v)
		if err != nil {
			return fmt.Errorf("invalid boolean value %q for -%s", v, name)
		}
		*p = b
		return nil
	}}
}

// accepted is an option that changes nothing here.
func accepted(name, usage string, takes bool) option {
	return option{name: name, usage: usage, takes: takes, set: func(string) error { return nil }}
}

// refused is an option that asks for what can't be done; why says it in words.
func refused(name, usage string, takes bool, why string) option {
	return option{name: name, usage: usage, takes: takes, set: func(v string) error {
		if off, err := strconv.ParseBool(v); !takes && err == nil && !off {
			return nil
		}
		return fmt.Errorf("--%s is %w yet: %s", name, errs.ErrUnsupported, why)
	}}
}

// oneOf is an option with a closed list of values, none of which matters here.
func oneOf(name, usage string, values ...string) option {
	return choice(new(string), name, usage, values...)
}

// choice is an option with a closed list of values, one of which goes to p.
func choice(p *string, name, usage string, values ...string) option {
	return option{name: name, usage: usage, takes: true, set: func(v string) error {
		if slices.Contains(values, v) {
			*p = v
			return nil
		}
		return fmt.Errorf("invalid value %q for --%s: want %s", v, name, strings.Join(values, ", "))
	}}
}

// hidden keeps o out of help.
func hidden(o option) option {
	o.quiet = true
	return o
}

// with gives o a one-letter name.
func with(short string, o option) option {
	o.short = short
	return o
}

// parsed is the outcome of parse.
type parsed struct {
	rest []string // what is not an option
	uses []use
}

// use is one option as it stood in the arguments.
type use struct {
	opt *option
	raw []string
}

// passed are the arguments without the options that are ours.
func (p parsed) passed() []string {
	var args []string
	for _, u := range p.uses {
		if !u.opt.ours {
			args = append(args, u.raw...)
		}
	}
	return args
}

// parse sets options from args. With verb it stops at the first argument that is
// not an option; without, options may also follow the container's name. "--"
// ends the options.
func parse(options []option, args []string, verb bool) (p parsed, err error) {
	for i := 0; i < len(args); i++ {
		a := args[i]
		switch {
		case a == "--":
			p.rest = append(p.rest, args[i+1:]...)
			return p, nil
		case len(a) < 2 || a[0] != '-':
			if verb {
				p.rest = args[i:]
				return p, nil
			}
			p.rest = append(p.rest, a)
			continue
		}
		u, err := parseOne(options, args[i:])
		if err != nil {
			return p, err
		}
		p.uses = append(p.uses, u)
		i += len(u.raw) - 1
	}
	return p, nil
}

// parseOne reads the option that args begin with.
func parseOne(options []option, args []string) (use, error) {
	dashed := strings.TrimPrefix(strings.TrimPrefix(args[0], "-"), "-")
	name, value, given := strings.Cut(dashed, "=")
	o := find(options, name)
	switch {
	case o == nil && (name == "help" || name == "h"):
		return use{}, errHelp
	case o == nil:
		return use{}, fmt.Errorf("flag provided but not defined: -%s", name)
	case given:
		return use{o, args[:1]}, o.set(value)
	case !o.takes:
		return use{o, args[:1]}, o.set("true")
	case len(args) == 1:
		return use{}, fmt.Errorf("flag needs an argument: -%s", name)
	}
	return use{o, args[:2]}, o.set(args[1])
}

func find(options []option, name string) *option {
	for i := range options {
		if o := &options[i]; name != "" && (o.name == name || o.short == name) {
			return o
		}
	}
	return nil
}
