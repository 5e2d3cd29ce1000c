// Package shim is containerd's task service for runc, with checkpoint and
// restore by stasis.
//
// The service of containerd's own runc shim is wrapped, not copied: every call
// goes through it, and so exec, terminals, logs, exit events and the state
// machine are containerd's. Two things differ. The runtime that the service
// runs is the stasis command, which passes everything but checkpoint and
// restore on to the host's runtime; and what the stock service forgets after a
// restore (the cgroup, the out-of-memory events, the directory that containerd
// unpacked the image into) is made good here.
//
// The engine never runs inside this process: the shim reaps every child with
// wait4(-1), which would take the engine's ptrace stops.
package shim
