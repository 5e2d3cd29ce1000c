// Package task saves and restores what belongs to processes and threads
// themselves: identity and family, credentials, processor state, signals,
// timers, scheduling, limits and seccomp filters. There is one file per kind,
// with its capture and its restore side by side.
//
// Most of it the kernel tells from outside (/proc, ptrace). What only the task
// itself can ask is gathered as a list of asks and run in one batch of remote
// calls per thread.
package task
