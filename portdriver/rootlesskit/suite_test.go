package rootlesskit_test

import (
	"os"
	"os/exec"
	"runtime"
	"testing"

	"github.com/rootless-containers/rootlesskit/v3/pkg/port"
	"github.com/rootless-containers/rootlesskit/v3/pkg/port/testsuite"

	"github.com/postern-net/postern/portdriver/rootlesskit"
	"github.com/postern-net/postern/stack/hostsock/nstest"
	"github.com/postern-net/postern/stack/stacktest"
)

// RootlessKit's own suite, with what it has for drivers that show the client's
// address. It wants TCP to show it, and UDP not to.
func TestRootlessKitSuite(t *testing.T) {
	for _, program := range []string{"nsenter", "ip", "nc"} {
		if _, err := exec.LookPath(program); err != nil {
			missing(t, "RootlessKit's test suite runs "+program+": "+err.Error())
		}
	}
	stacktest.NoLeaks(t)
	// The suite kills its programs without waiting for them: their pidfds and pipes
	// are closed by the garbage collector, when that comes.
	t.Cleanup(runtime.GC)
	nstest.NewRouter(t) // gives us an address that is not loopback
	newParent := func() port.ParentDriver {
		return rootlesskit.NewParentDriver(rootlesskit.Config{StateDir: t.TempDir()})
	}
	testsuite.Run(t, newParent)
	testsuite.RunTCPTransparent(t, newParent)
	testsuite.RunUDPTransparent(t, newParent)
}

// missing ends a test for which the machine is not equipped. Where everything was
// set up that is a failure.
func missing(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(what)
	}
	t.Skip(what)
}
