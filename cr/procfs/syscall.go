package procfs

import (
	"bytes"
	"io"
	"strconv"
)

// Syscall is what a task waits in (fs/proc/base.c, proc_pid_syscall).
type Syscall struct {
	Running bool  // on a CPU or about to be: nothing else is known
	NR      int64 // number of the system call; -1: blocked outside of one
	Args    [6]uint64
	SP, PC  uint64
}

// ParseSyscall parses /proc/PID/syscall.
func ParseSyscall(r io.Reader) (Syscall, error) {
	b, err := readAll(r, smallFile)
	if err != nil {
		return Syscall{}, err
	}
	words := bytes.Fields(b)
	if len(words) == 1 && string(words[0]) == "running" {
		return Syscall{Running: true}, nil
	}
	var s Syscall
	to := []*uint64{&s.SP, &s.PC}
	if len(words) == 9 {
		to = append([]*uint64{&s.Args[0], &s.Args[1], &s.Args[2], &s.Args[3], &s.Args[4], &s.Args[5]}, to...)
	}
	if len(words) != 1+len(to) || !dec(words[0], &s.NR) || (s.NR < 0) != (len(to) == 2) {
		return Syscall{}, badLine(b)
	}
	for i, w := range words[1:] {
		w, ok := bytes.CutPrefix(w, []byte("0x"))
		if !ok || !hex(w, to[i]) {
			return Syscall{}, badLine(b)
		}
	}
	return s, nil
}

// Syscall reads what a thread waits in.
func (root FS) Syscall(pid, tid int) (Syscall, error) {
	return read(root, ParseSyscall, strconv.Itoa(pid), "task", strconv.Itoa(tid), "syscall")
}

// ReadSyscall reads /proc/PID/task/TID/syscall.
func ReadSyscall(pid, tid int) (Syscall, error) { return Proc.Syscall(pid, tid) }

// ReadWchan reads /proc/PID/task/TID/wchan: the kernel's function that a thread
// sleeps in; "0" if it does not sleep.
func ReadWchan(pid, tid int) (string, error) {
	b, err := ReadFile("/proc/" + strconv.Itoa(pid) + "/task/" + strconv.Itoa(tid) + "/wchan")
	return string(b), err
}
