package cr

import "github.com/opencontainers/cgroups"

// Version is the engine's version, as it stands in images.
const Version = "0.1.0"

func cgroupVersion() uint32 {
	if cgroups.IsCgroup2UnifiedMode() {
		return 2
	}
	return 1
}
