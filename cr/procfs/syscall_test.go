package procfs

import "testing"

const syscallText = "61 0xffffffff 0x7ffee49209a0 0x0 0x0 0x1 0x8 0x7ffee4920978 0x7fde9b782bd3\n"

func TestParseSyscall(t *testing.T) {
	checkParse(t, ParseSyscall, []parseCase[Syscall]{
		{"wait4", syscallText, Syscall{
			NR: 61, Args: [6]uint64{0xffffffff, 0x7ffee49209a0, 0, 0, 1, 8}, SP: 0x7ffee4920978, PC: 0x7fde9b782bd3,
		}},
		{"running", "running\n", Syscall{Running: true}},
		{"stopped", "-1 0x7ffee4920978 0x7fde9b782bd3\n", Syscall{NR: -1, SP: 0x7ffee4920978, PC: 0x7fde9b782bd3}},
	})
	checkRefused(t, ParseSyscall, "", "walking", "0", "1 0x1 0x2", "-1 0x1", "-1 1 2", "x 0x1 0x2", replaced(t,
		syscallText, "61", "-1"))
}

func TestReadSyscall(t *testing.T) {
	pid := linux(t)
	if s, err := ReadSyscall(pid, pid); err != nil {
		t.Errorf("this process: %+v, %v", s, err)
	}
}

func FuzzParseSyscall(f *testing.F) { fuzz(f, ParseSyscall, syscallText, "running\n", "-1 0x1 0x2\n") }
