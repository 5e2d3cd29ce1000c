package procfs

import (
	"errors"
	"io/fs"
	"testing"
)

const timersText = `ID: 2
signal: 12/0000000000000abc
notify: signal/tid.18665
ClockID: -6
ID: 1
signal: 14/(null)
notify: none/pid.18665
ClockID: 0
ID: 0
signal: 0/ffffffffffffffff
notify: thread/pid.0
ClockID: 1
`

func TestParseTimers(t *testing.T) {
	checkParse(t, ParseTimers, []parseCase[[]Timer]{{"three", timersText, []Timer{
		{ID: 2, Signal: 12, Value: 0xabc, Notify: SigevThreadID, TID: 18665, Clock: -6},
		{ID: 1, Signal: 14, Notify: SigevNone, TID: 18665},
		{ID: 0, Value: 1<<64 - 1, Notify: SigevThread, Clock: 1},
	}}, {"none", "", nil}})
	checkRefused(t, ParseTimers, "ID: 1\n", "signal: 1/0\n", "ID: x\n", timersText+"ID: 5\nsignal: 1/0\n",
		replaced(t, timersText, "none", "call"), replaced(t, timersText, "tid", "gid"),
		replaced(t, timersText, "12/", "12 "), replaced(t, timersText, "ClockID", "clock"))
}

func TestReadTimers(t *testing.T) {
	got, err := ReadTimers(linux(t))
	if errors.Is(err, fs.ErrNotExist) {
		missing(t, "a kernel with CONFIG_CHECKPOINT_RESTORE")
	}
	if err != nil {
		t.Errorf("timers of this process: %v, %v", got, err)
	}
}

func FuzzParseTimers(f *testing.F) { fuzz(f, ParseTimers, timersText) }
