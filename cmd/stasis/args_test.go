package main

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/stasis-cr/stasis/cr/errs"
)

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		args string // separated by spaces
		verb bool
		rest string
		path string
		on   bool
		pass string
		err  string
	}{
		{args: "", rest: ""},
		{args: "id", rest: "id"},
		{args: "--path p id", path: "p", rest: "id", pass: "--path p"},
		{args: "-path=p -on id", path: "p", on: true, rest: "id", pass: "-path=p -on"},
		{args: "id --path p", path: "p", rest: "id", pass: "--path p"},
		{args: "-p p -ours -on=false", path: "p", pass: "-p p -on=false"},
		{args: "--path= id", rest: "id", pass: "--path="},
		{args: "--path -on id", path: "-on", rest: "id", pass: "--path -on"},
		{args: "-on verb -path p", verb: true, on: true, rest: "verb -path p", pass: "-on"},
		{args: "-on -- -path", on: true, rest: "-path", pass: "-on"},
		{args: "- id", rest: "- id"},
		{args: "--path", err: "flag needs an argument: -path"},
		{args: "--bogus", err: "flag provided but not defined: -bogus"},
		{args: "--=x", err: "flag provided but not defined: -"},
		{args: "---on", err: "flag provided but not defined: --on"},
		{args: "-on=maybe", err: `invalid boolean value "maybe" for -on`},
		{args: "-h", err: errHelp.Error()},
		{args: "id --help", err: errHelp.Error()},
		{args: "-later", err: "--later is not supported yet: it is not"},
		{args: "-later=false id", rest: "id", pass: "-later=false"},
		{args: "-color red", pass: "-color red"},
		{args: "-color blue", err: `invalid value "blue" for --color: want red, green`},
	} {
		t.Run(tt.args, func(t *testing.T) {
			var path string
			var set, ours bool
			opt := on(&ours, "ours", "")
			opt.ours = true
			options := []option{
				with("p", text(&path, "path", "")), on(&set, "on", ""), opt,
				refused("later", "", false, "it is not"), oneOf("color", "", "red", "green"),
			}
			p, err := parse(options, strings.Fields(tt.args), tt.verb)
			if tt.err != "" {
				if err == nil || err.Error() != tt.err {
					t.Errorf("error %v, want %s", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if path != tt.path || set != tt.on {
				t.Errorf("path %q on %v, want %q %v", path, set, tt.path, tt.on)
			}
			if got := strings.Fields(tt.rest); !slices.Equal(p.rest, got) {
				t.Errorf("rest %q, want %q", p.rest, got)
			}
			if want := strings.Fields(tt.pass); !slices.Equal(p.passed(), want) {
				t.Errorf("passed %q, want %q", p.passed(), want)
			}
		})
	}
}

func TestRefusedIsUnsupported(t *testing.T) {
	_, err := parse([]option{refused("later", "", true, "why")}, []string{"--later", "x"}, false)
	if !errors.Is(err, errs.ErrUnsupported) {
		t.Error(err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("--path\x00p\x00-on\x00id")
	f.Add("-on=true\x00--\x00-x")
	f.Fuzz(func(t *testing.T, joined string) {
		var path string
		var set bool
		options := []option{text(&path, "path", ""), on(&set, "on", "")}
		args := strings.Split(joined, "\x00")
		p, err := parse(options, args, true)
		if err == nil && len(p.passed())+len(p.rest) > len(args) {
			t.Errorf("%q became %q and %q", args, p.passed(), p.rest)
		}
	})
}
