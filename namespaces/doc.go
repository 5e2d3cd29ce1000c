// Package namespaces looks at the namespaces that an OCI runtime made for a
// container, enters them, and puts back what changed in them since: the OCI
// runtime builds the container, this package fills it.
//
// One file per kind of namespace describes it, names what can't be saved, and
// restores the rest:
//
//	mnt.go     mounts compared with the bundle's config and with the image
//	tmpfs.go   contents of the tmpfs mounts that belong to the container
//	uts.go     host name and domain name
//	net.go     is it private, and is its loopback up
//	ipc.go     System V and POSIX message objects: refused by name
//	pid.go     the depth of nesting
//	setter.go  pids chosen ahead of each fork
//	differ.go  tasks that left the namespaces of their init
//
// Everything is told by the pid of one of the container's tasks, as this
// process's own pid namespace numbers it. Nothing here stops, signals or traces
// a task. What only looks leaves access times of files and directories as they
// were.
//
// The tree of a tmpfs comes out of an image and so from a stranger. It is
// unpacked with every name resolved beneath the mountpoint, through no symbolic
// link and into no other mount, and it brings no device that the OCI runtime did
// not put there.
package namespaces
