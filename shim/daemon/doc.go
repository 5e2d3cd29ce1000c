// Package daemon is what a live migration asks of a containerd: what a container
// is made of, on the machine where it runs, and the same container made anew on
// another.
//
// A container goes over as its record, its image if the other side lacks it, and
// what it has changed of the image's files. The files are sent as OCI layers, the
// first while the container runs, the later ones with what has changed since.
// What runs in it is not this package's business: it goes over as a checkpoint.
//
// Both sides need the containerd's own view of the file system, and root: they
// read and write the files of its snapshots in place.
package daemon
