//go:build integration

package integration

import (
	"os"
	"testing"

	"github.com/stasis-cr/stasis/integration/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }
