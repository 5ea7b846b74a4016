package splice

import (
	"os"
	"testing"

	"github.com/postern-net/postern/portdriver/drivertest"
)

// childRole is set for a process that a test starts from this binary.
const childRole = "POSTERN_SPLICE_TEST_ROLE"

func TestMain(m *testing.M) {
	if os.Getenv(childRole) == "starved" {
		os.Exit(starvedChild())
	}
	os.Exit(drivertest.Main(m, conformance))
}
