// Package images gives a checkpoint what its neighbours expect of it.
//
// The checkpoint itself is the business of cr/blob/dir, whose [Open] and [Dir]
// are repeated here. Tools that were written around CRIU look for more:
//
//	descriptors.json  what descriptors 0, 1 and 2 of the init were: runc's file
//	inventory.img     podman and CRI-O restore only where it exists
//	stats-dump        podman's --print-stats; in the work directory
//	dump.log          containerd and podman keep it when a checkpoint fails
//	restore.log       the same for a restore
//
// None of them is needed for a restore by stasis. The logs carry every record
// that the engine's logger was given, and the failure on a line that begins with
// "Error", which is what runc's callers look for.
package images
