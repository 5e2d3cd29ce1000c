// Package remote makes system calls inside a stopped task.
//
// There are two ways in, both a [Caller]:
//
// [Visit] borrows a task that must live on: a checkpoint. It is death-safe: at
// every instant the task, should we be killed and the kernel detach it, finds
// its own way back to where it was interrupted. Nothing is written to its stack
// or its own code. After Close nothing differs but one page of the vdso, which
// has become a private copy with the old content.
//
// [Own] takes over a task that is ours: a restore, under PTRACE_O_EXITKILL.
// Nothing of it needs to be kept, so it alone can fork, exec and exit.
//
// Both let the task run an array of calls in one resume: a loop loads number
// and arguments of an entry, makes the call, stores the answer, goes on. The
// task then says that it is done by a signal to itself, which ptrace reports
// and we swallow. A breakpoint would not do: the kernel forces its SIGTRAP and,
// where that is ignored or blocked, resets the disposition for good
// (force_sig_info_to_task in kernel/signal.c).
//
// All functions are called from the thread that attached the task; see package
// tracer.
package remote
