// Package procfs parses the files of /proc that describe tasks. It looks and
// never acts: nothing here changes a task, needs root or needs Linux to build.
//
// Each kernel file has one Go file with a parser over [io.Reader] and a reader
// that opens the file. Readers are methods of [FS], a folder with the layout of
// /proc, so that tests bring their own; functions of the package read the
// machine's.
//
// Rules that all parsers keep:
//
//   - Numbers are as the kernel shows them to whoever opened the file: pids are
//     those of the pid namespace that /proc was mounted for.
//   - Sizes are bytes, although the kernel writes kB.
//   - A line that is not understood is an error that wraps [ErrFormat] and quotes
//     the line, and so is an end before everything that every supported kernel
//     (5.10 and later) writes. Lines that newer kernels added to files made of
//     "Key: value" lines are skipped, but those of fdinfo are kept in
//     [FDInfo.Extra]: there an unknown line is an object that nobody knows.
//   - Memory is bounded by what is in the file, whatever the file says.
//
// A reader's error wraps [errs.ErrGone] when the task ended meanwhile.
package procfs
