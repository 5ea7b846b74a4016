package netstack

import (
	"os"
	"testing"

	"github.com/postern-net/postern/portdriver/drivertest"
	"github.com/postern-net/postern/stack/stacktest"
)

func TestMain(m *testing.M) {
	os.Exit(stacktest.RunChecked(func() int { return drivertest.Main(m, append(alone, together)...) }))
}
