package procfs

import (
	"os"
	"testing"
)

// From Linux 6.18; the name is one that tries to look like the fields behind it.
const statText = "18571 (ba) Z 1\n (x) S 18570 18571 8474 34816 -1 4194368 118 66 0 0 0 0 0 0 20 -5 3 0 225278 4595712 482 " +
	"18446744073709551615 94890762207232 94890762996637 140732733209536 0 0 0 65536 0 81922 1 0 0 17 1 0 0 0 0 0 " +
	"94890763229936 94890763278180 94890779283456 140732733213533 140732733213548 140732733213548 140732733214698 256\n"

func TestParseStat(t *testing.T) {
	checkParse(t, ParseStat, []parseCase[Stat]{{"6.18", statText, Stat{
		PID: 18571, Comm: "ba) Z 1\n (x", State: 'S', PPID: 18570, PGRP: 18571, Session: 8474, TTYNr: 34816, TPGID: -1,
		Flags: 4194368, Priority: 20, Nice: -5, NumThreads: 3, StartTime: 225278, VSize: 4595712,
		StartCode: 94890762207232, EndCode: 94890762996637, StartStack: 140732733209536, ExitSignal: 17, Processor: 1,
		StartData: 94890763229936, EndData: 94890763278180, StartBrk: 94890779283456,
		ArgStart: 140732733213533, ArgEnd: 140732733213548, EnvStart: 140732733213548, EnvEnd: 140732733214698,
		ExitCode: 256,
	}}})
	checkRefused(t, ParseStat, "", "1", "1 (x", "(x) S", "1 )x( S", "1 (x) S 2 3", replaced(t, statText, " 34816 ",
		" 3x ") /* no number */)
}

func TestReadStat(t *testing.T) {
	pid := linux(t)
	s, err := ReadStat(pid)
	if err != nil {
		t.Fatal(err)
	}
	if s.PID != pid || s.PPID != os.Getppid() || s.StartCode == 0 || s.ArgStart == 0 {
		t.Errorf("stat of this process: %+v", s)
	}
	if task, err := ReadTaskStat(pid, pid); err != nil || task.StartTime != s.StartTime {
		t.Errorf("stat of the leader: %+v, %v", task, err)
	}
}

func FuzzParseStat(f *testing.F) { fuzz(f, ParseStat, statText, "1 (x) S", "1 () S -1") }
