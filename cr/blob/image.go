package blob

// StateFile is the name of the file in an image directory that [Write] writes.
const StateFile = "state.img"

// Image is all that state.img holds. Read makes what it returns anew; whoever
// fills an Image may share messages with others until Write has returned.
type Image struct {
	Host       *Host
	Container  *Container
	Namespaces *Namespaces
	Seccomp    *Seccomp // nil: no thread has filters
	Files      []*File
	FDTables   []*FDTable
	MMs        []*MM
	Processes  []*Process
	Contents   []*Contents
	Pages      *PageStore // nil: no page was worth saving
}
