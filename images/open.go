package images

import "github.com/stasis-cr/stasis/cr/blob/dir"

// A Dir is a checkpoint in a directory.
type Dir = dir.Dir

// Open reads and checks the checkpoint in the directory path. The caller closes
// it. Errors are those of dir.Open.
func Open(path string) (*Dir, error) { return dir.Open(path) }
