package blob

// OwnFile is a file in the image directory that holds chunks.
type OwnFile struct {
	Store uint32 // its number, as chunks say it
	Name  string
	Size  uint64 // bytes
}

// OwnFiles lists the files of a page store that lie in its image's directory. p may
// be nil; a store without any chunk of its own has none.
func (p *PageStore) OwnFiles() []OwnFile {
	if p.GetFile() == "" {
		return nil
	}
	list := []OwnFile{{0, p.File, p.Size}}
	for i, f := range p.More {
		list = append(list, OwnFile{uint32(1 + len(p.Parents) + i), f.File, f.Size})
	}
	return list
}

// OwnSize is what the files of OwnFiles have together, in bytes.
func (p *PageStore) OwnSize() (n uint64) {
	for _, f := range p.OwnFiles() {
		n += f.Size
	}
	return n
}

// Owns says whether the store that chunks call n is one of OwnFiles, and not an
// earlier checkpoint's.
func (p *PageStore) Owns(n uint32) bool { return n == 0 || uint64(n) > uint64(len(p.GetParents())) }

// Stores is how many stores a chunk can name: number 0, which there may be no file
// of, those of parents and those of more.
func (p *PageStore) Stores() int { return 1 + len(p.GetParents()) + len(p.GetMore()) }
