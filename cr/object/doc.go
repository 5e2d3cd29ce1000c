// Package object saves and restores open file descriptions (struct file) and
// the descriptor tables that name them.
//
// One file holds one kind: what it matches, its capture, its restore. [Kinds] is
// the list of all of them, in the order they are asked. What every description
// has (status flags, position, owner) is in blob.File and handled once.
//
// A checkpoint makes a [Capture] and calls Table for each process, Path for its
// cwd, root and exe, Mapping for each file mapping, and last Finish, which sees
// all descriptions at once: ends of pipes, peers of sockets, targets of epoll.
// Capture looks and never changes an object: everything comes from /proc, from
// kcmp(2) and from a duplicate of the description in our own process
// (pidfd_getfd(2)), where nothing is read that a read would take away.
//
// A restore makes a [Restorer] and calls, in this order:
//
//	Prepare   one visit to the container's namespaces: paths, sockets
//	Open      any description, once; Mapping for those behind mappings
//	Install   a process's table, through a channel into it
//	Link      what is bound to a process: epoll entries, POSIX locks
//	Arm       last, with all memory mapped: seals, owners, flocks, timers
//	Close     our own descriptors
//
// Descriptions are shared by reference: two descriptors that named one struct
// file do so again, in whatever processes they are. What is shared with tasks
// outside of the container is an external (stdio of the runtime) or refused.
package object
