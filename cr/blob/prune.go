package blob

// Prune takes out of the index the chunks of earlier checkpoints that no page
// lies in, and the earlier checkpoints that are not needed then. The chunks of
// the image's own store stay.
func (img *Image) Prune() {
	if len(img.Pages.GetParents()) == 0 {
		return
	}
	used := img.Referenced()
	stores := make([]uint32, img.Pages.Stores()) // new number of each; 0: not needed
	for i, c := range img.Pages.Chunks {
		if img.Pages.Owns(c.Store) {
			used[i] = true
		} else if used[i] {
			stores[c.Store] = 1
		}
	}
	var parents []*ParentStore
	for i, p := range img.Pages.Parents {
		if stores[i+1] != 0 {
			parents = append(parents, p)
			stores[i+1] = uint32(len(parents))
		}
	}
	for i := range img.Pages.More {
		stores[1+len(img.Pages.Parents)+i] = uint32(1 + len(parents) + i)
	}
	img.KeepChunks(used)
	for _, c := range img.Pages.Chunks {
		c.Store = stores[c.Store]
	}
	img.Pages.Parents = parents
}

// Referenced says of each chunk whether any page lies in it.
func (img *Image) Referenced() []bool {
	used := make([]bool, len(img.Pages.GetChunks()))
	img.eachExtent(func(e *Extent) { used[e.Chunk] = true })
	return used
}

// KeepChunks takes all other chunks out of the index. Precondition: no page lies
// in them.
func (img *Image) KeepChunks(keep []bool) {
	var chunks []*Chunk
	number := make([]uint32, len(keep))
	for i, c := range img.Pages.GetChunks() {
		if keep[i] {
			number[i] = uint32(len(chunks))
			chunks = append(chunks, c)
		}
	}
	img.eachExtent(func(e *Extent) { e.Chunk = number[e.Chunk] })
	img.Pages.Chunks = chunks
}

// eachExtent calls f for every extent of the image.
func (img *Image) eachExtent(f func(*Extent)) {
	for _, c := range img.Contents {
		for _, e := range c.Extents {
			f(e)
		}
	}
	for _, m := range img.MMs {
		for _, e := range m.Extents {
			f(e)
		}
	}
}
