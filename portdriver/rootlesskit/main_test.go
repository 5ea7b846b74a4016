package rootlesskit_test

import (
	"os"
	"testing"

	"github.com/rootless-containers/rootlesskit/v3/pkg/port"
	"github.com/rootless-containers/rootlesskit/v3/pkg/port/testsuite"

	"github.com/postern-net/postern/portdriver/drivertest"
	"github.com/postern-net/postern/portdriver/rootlesskit"
	"github.com/postern-net/postern/stack/tap"
)

// testsuiteMode is how RootlessKit's test suite tells its processes what they are.
const testsuiteMode = "rootlesskit-port-testsuite.mode"

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(testsuiteMode) != "":
		testsuite.Main(m, newChild)
		os.Exit(0)
	case os.Getenv(childVariable) != "":
		os.Exit(runChild())
	}
	os.Exit(drivertest.Main(m, harness))
}

func newChild() port.ChildDriver { return rootlesskit.NewChildDriver(rootlesskit.Config{}) }

// harness claims all that RootlessKit's interfaces can express, but for the client's
// address over UDP; see the package comment.
var harness = func() drivertest.Harness {
	h := drivertest.RootlessKit("postern for RootlessKit",
		func(w drivertest.World) (port.ParentDriver, error) {
			return rootlesskit.NewParentDriver(rootlesskit.Config{StateDir: w.StateDir}), nil
		},
		newChild,
		drivertest.Source, drivertest.Gateway, drivertest.UDP, drivertest.IPv6, drivertest.Loopback, drivertest.Refusal,
		drivertest.Resets, drivertest.Outlive, drivertest.Recover, drivertest.ReplyAddress, drivertest.Empty)
	h.Device, h.Kept = tap.Packet, 512
	return h
}()

func TestConformance(t *testing.T) { drivertest.Run(t, harness) }
