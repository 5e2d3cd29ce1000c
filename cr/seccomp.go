package cr

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stasis-cr/stasis/cr/blob"
)

// profileDigest identifies a bundle's seccomp profile; nil if the bundle is not
// known or has none. A runtime makes one filter from a profile.
func profileDigest(spec *specs.Spec) []byte {
	if spec == nil || spec.Linux == nil || spec.Linux.Seccomp == nil {
		return nil
	}
	b, err := json.Marshal(spec.Linux.Seccomp)
	if err != nil {
		return nil
	}
	sum := sha256.Sum256(b)
	return sum[:]
}

// recordProfile notes which of init's filters the runtime made.
func recordProfile(c *blob.Container, spec *specs.Spec, init *blob.Process) {
	if c.SeccompDigest = profileDigest(spec); c.SeccompDigest != nil && len(init.Threads[0].SeccompFilters) > 0 {
		c.RuntimeFilters = 1
	}
}

// replaceProfile lets the filters that the runtime has just made from the bundle's
// profile stand for those that it made from the same profile before. Another
// profile than the image's must agree byte for byte.
func (r *restorer) replaceProfile() error {
	was := r.img.Container
	spec, err := readSpec(r.o.Bundle)
	if err != nil {
		return err
	}
	if len(was.SeccompDigest) == 0 || !bytes.Equal(was.SeccompDigest, profileDigest(spec)) {
		return nil
	}
	old := r.processes[1].Threads[0].SeccompFilters
	return r.filters.Replace(old[:min(int(was.RuntimeFilters), len(old))], r.born.Filters)
}
