package procfs

import (
	"bytes"
	"io"
	"strconv"
)

// Stat is /proc/PID/stat (fs/proc/array.c, do_task_stat; proc_pid_stat(5)).
// Addresses, ExitCode and StartStack are 0 unless the reader may ptrace the task.
type Stat struct {
	PID        int
	Comm       string // as it is, without escapes; any bytes but NUL
	State      byte   // R, S, D, T (stopped), t (traced), Z, X, I, ...
	PPID       int
	PGRP       int // 0: led from outside of the reader's pid namespace
	Session    int // likewise
	TTYNr      int // device number, 0 for none
	TPGID      int // foreground group of the terminal, or -1
	Flags      uint32
	Priority   int
	Nice       int
	NumThreads int
	StartTime  uint64 // clock ticks after boot
	VSize      uint64 // bytes
	StartCode  uint64
	EndCode    uint64
	StartStack uint64
	ExitSignal int // -1 for a thread that is no leader
	Processor  int
	RTPriority uint32
	Policy     uint32
	StartData  uint64
	EndData    uint64
	StartBrk   uint64
	ArgStart   uint64
	ArgEnd     uint64
	EnvStart   uint64
	EnvEnd     uint64
	ExitCode   int // wait status
}

// statFields is how many fields follow the name; Linux 3.5 wrote the last new one.
const statFields = 50

// ParseStat parses /proc/PID/stat or /proc/PID/task/TID/stat.
func ParseStat(r io.Reader) (Stat, error) {
	b, err := readAll(r, 1<<14)
	if err != nil {
		return Stat{}, err
	}
	var s Stat
	// The name may hold blanks, newlines and parentheses, but no field behind it
	// does: it ends at the last parenthesis.
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 1 || end < open || !dec(b[:open], &s.PID) {
		return Stat{}, badLine(b)
	}
	s.Comm = string(b[open+1 : end])
	words := bytes.Fields(b[end+1:])
	if len(words) < statFields || len(words[0]) != 1 || !s.numbers(words) {
		return Stat{}, badLine(b)
	}
	s.State = words[0][0]
	return s, nil
}

// numbers fills in the fields by their numbers in proc_pid_stat(5); the state,
// words[0], is field 3.
func (s *Stat) numbers(words [][]byte) bool {
	at := func(n int) []byte { return words[n-3] }
	signed := []struct {
		n  int
		to *int
	}{
		{4, &s.PPID},
		{5, &s.PGRP},
		{6, &s.Session},
		{7, &s.TTYNr},
		{8, &s.TPGID},
		{18, &s.Priority},
		{19, &s.Nice},
		{20, &s.NumThreads},
		{38, &s.ExitSignal},
		{39, &s.Processor},
		{52, &s.ExitCode},
	}
	for _, f := range signed {
		if !dec(at(f.n), f.to) {
			return false
		}
	}
	wide := []struct {
		n  int
		to *uint64
	}{
		{22, &s.StartTime},
		{23, &s.VSize},
		{26, &s.StartCode},
		{27, &s.EndCode},
		{28, &s.StartStack},
		{45, &s.StartData},
		{46, &s.EndData},
		{47, &s.StartBrk},
		{48, &s.ArgStart},
		{49, &s.ArgEnd},
		{50, &s.EnvStart},
		{51, &s.EnvEnd},
	}
	for _, f := range wide {
		if !dec(at(f.n), f.to) {
			return false
		}
	}
	return dec(at(9), &s.Flags) && dec(at(40), &s.RTPriority) && dec(at(41), &s.Policy)
}

// Stat reads a process's stat.
func (root FS) Stat(pid int) (Stat, error) {
	return read(root, ParseStat, strconv.Itoa(pid), "stat")
}

// TaskStat reads a thread's stat.
func (root FS) TaskStat(pid, tid int) (Stat, error) {
	return read(root, ParseStat, strconv.Itoa(pid), "task", strconv.Itoa(tid), "stat")
}

// ReadStat reads /proc/PID/stat.
func ReadStat(pid int) (Stat, error) { return Proc.Stat(pid) }

// ReadTaskStat reads /proc/PID/task/TID/stat.
func ReadTaskStat(pid, tid int) (Stat, error) { return Proc.TaskStat(pid, tid) }
