// Package dir keeps a checkpoint in a directory: state.img, which package blob
// describes, and the files that it names, all of them regular and beside it.
// Neighbours pack the directory as they find it (containerd's CRI unpacks only a
// flat tree and inflates holes), so there are no folders, links or sparse files.
//
// A [Writer] gives every file a temporary name that begins with a dot. Commit
// syncs them, renames them, and renames state.img last: that one rename is the
// moment at which the checkpoint exists. A checkpoint that was in the directory
// before stays whole until that moment, because no file it names is touched;
// then its files are removed. A writer that was killed leaves temporary files,
// which the next one removes; a lock on the directory, which dies with its
// holder, keeps two writers apart.
//
// A [Receiver] does the same for a checkpoint that comes from elsewhere, except
// that what is half there stays, for the next one to go on with.
//
// A [Dir] trusts nothing that it reads: a link, a FIFO, a name that leads out of
// the directory, a file that is missing or has another size than state.img says
// is refused with [errs.ErrCorrupt] before anybody acts on the image. A directory
// without state.img is [errs.ErrNotImage].
package dir
