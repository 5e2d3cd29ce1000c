package procfs

import (
	"os"
	"slices"
	"strings"
	"testing"
)

func TestParseCmdline(t *testing.T) {
	checkParse(t, ParseCmdline, []parseCase[[]string]{
		{"three", "sh\x00-c\x00\x00", []string{"sh", "-c", ""}}, {
			"overwritten", "nginx: worker",
			[]string{"nginx: worker"},
		}, {"zombie", "", nil},
	})
	long, err := ParseCmdline(strings.NewReader(strings.Repeat("x", 1<<20)))
	if err != nil || len(long) != 1 || len(long[0]) != cmdlineMost {
		t.Errorf("1 MiB of arguments: %d, %v", len(long), err)
	}
}

func TestReadCmdline(t *testing.T) {
	if got, err := ReadCmdline(linux(t)); err != nil || !slices.Equal(got, os.Args) {
		t.Errorf("%q, %v; want %q", got, err, os.Args)
	}
}

func FuzzParseCmdline(f *testing.F) { fuzz(f, ParseCmdline, "a\x00b\x00") }
