// Package blob is the file format of a checkpoint's state: a header, sections of
// one record each, and an end that shows that nothing is missing. The records are
// protobuf messages; their schema, *.proto, is their documentation, and
// docs/FORMAT.md is that of the file around them.
//
// [Write] turns an [Image] into bytes; [Read] checks that bytes are what a writer
// wrote, and [Image.Validate] that they make sense together. A reader that acts
// on an image must have called both: afterwards every id resolves, every range
// lies where it must, and every number fits what the kernel may be told. What
// only the machine can answer (is this file there, may this task have that
// credential) is not looked at here.
//
// The package builds on any system, needs no root, and takes no more memory than
// some multiple of the file's own size, whatever the file says. Errors wrap
// [errs.ErrNotImage], [errs.ErrVersion] or [errs.ErrCorrupt].
package blob
