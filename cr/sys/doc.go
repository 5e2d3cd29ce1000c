// Package sys holds the system calls and kernel constants that x/sys/unix
// lacks. It alone makes raw system calls; functions that hand the kernel
// pointers stand in files named *_unsafe.go. It decides nothing: every function
// is one call, and errors are the kernel's bare answers for callers to wrap.
package sys
