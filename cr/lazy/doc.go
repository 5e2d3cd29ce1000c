// Package lazy fills the memory of a restored container while it runs, from page
// stores that are here or that a page server has.
//
// The engine maps private anonymous memory, watches it with a userfaultfd for
// each address space and lets the container go. Two processes of ours stay until
// every page is there:
//
//   - the server answers faults from the page store and fills the rest in the
//     background: first what the last run needed first, then in address order;
//   - the guard holds a second reference to everything and waits. A userfaultfd
//     whose last reference goes lets the program read zeros; with the guard's it
//     blocks until the guard has started another server.
//
// What is still missing is kept as a [Table] for each address space. The program
// changes it while it runs: it unmaps, moves and discards memory and forks. The
// kernel says so by events, and the one who did it waits until the event is read;
// to read is to acknowledge. So that no death comes between, the message is read
// straight into a [Journal], which is memory that the guard holds too: a new
// server plays it over the plan and knows what the dead one knew.
//
// A page is never put by an old table. Copies hold the address space's lock
// shared, the reading of an event holds it alone, and the kernel refuses a copy
// (EAGAIN) from the moment when a mapping changes until the event is read
// (mmap_changing in fs/userfaultfd.c). A copy that succeeds was therefore made by
// a table that knew every change before it.
//
// The userfaultfd of a child is given to whoever reads of the fork. A third
// process, the holder, shares the server's table of descriptors and does nothing:
// the guard takes from it what a server that died had not yet reported, and if
// both die it keeps the program waiting.
//
// What can't be known (see book) or can't be had (a damaged chunk, a page server
// that stays away) ends the container, with the reason in restore.log. It never
// becomes zeros.
package lazy
