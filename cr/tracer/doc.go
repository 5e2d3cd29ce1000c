// Package tracer stops tasks and reads and writes their registers by ptrace(2).
//
// The kernel obeys only the OS thread that attached a task. The package starts
// no goroutine and moves nothing to another thread: whoever calls [Seize] holds
// [runtime.LockOSThread] from then on and makes every further call on that task
// from the same goroutine. If that thread ends, the kernel detaches its tasks
// and they run on, unless PTRACE_O_EXITKILL was set.
//
// Order of events: [Seize] (the task keeps running), [Task.Halt] (it stops),
// whatever has to be looked at, [Task.Detach]. [Task.Wait] never blocks beyond
// its bound; it polls, because a blocking wait4 can't be cut short without
// signals.
//
// A task that dies under us answers ESRCH or ECHILD, reported as [errs.ErrGone].
package tracer
