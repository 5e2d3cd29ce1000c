package remote

// FindSyscall finds a `syscall` instruction in the vdso of a task, for a caller
// that sets the registers of a call itself.
func FindSyscall(tid int) (Addr, error) { return syscallInsn(tid) }
