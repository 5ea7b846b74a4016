package drivertest_test

import (
	"io"
	"os"
	"os/exec"
	"testing"

	"github.com/rootless-containers/rootlesskit/v3/pkg/port"
	"github.com/rootless-containers/rootlesskit/v3/pkg/port/builtin"

	"github.com/postern-net/postern/portdriver/drivertest"
	"github.com/postern-net/postern/stack/tap"
)

// RootlessKit's builtin driver is the suite's judge: an implementation that others
// wrote and use. It passes what it claims, so the suite asks for nothing that is not
// owed; what it does not claim stands below with its reason.
//
//   - Refusal: a client of a closed port is accepted, and its connection ends after ten
//     attempts.
//   - Resets: a relay of its kind turns a reset into an end.
//   - Outlive: removing a port closes its connections.
//   - Recover: its accept loop ends for good with the first error.
//   - Empty: its UDP loop sends a datagram in parts until nothing is left to send, so
//     one of none is never sent. ReplyAddress: a reply has the address of the route.
//   - Gateway, SourceUDP, OwnAddress, Range, Proxy, Unix: it has no such thing.
//
// Source it claims where it finds its programs.
var (
	judge       = newJudge("builtin", false)
	transparent = newJudge("builtin, transparent", true, drivertest.Source)
)

func newJudge(name string, transparent bool, more ...drivertest.Feature) drivertest.Harness {
	h := drivertest.RootlessKit(name,
		func(w drivertest.World) (port.ParentDriver, error) {
			return builtin.NewParentDriver(io.Discard, w.StateDir, transparent, "")
		},
		func() port.ChildDriver { return builtin.NewChildDriver(io.Discard) },
		append(more, drivertest.UDP, drivertest.IPv6, drivertest.Loopback)...)
	h.Device = tap.Packet
	// Its UDP proxy makes its table without the lock under which Close reads it.
	h.Foreign = true
	return h
}

func TestMain(m *testing.M) { os.Exit(drivertest.Main(m, judge, transparent)) }

func TestBuiltin(t *testing.T) { drivertest.Run(t, judge) }

func TestBuiltinTransparent(t *testing.T) {
	for _, program := range []string{"ip", "sysctl", "nft"} {
		if _, err := exec.LookPath(program); err != nil && os.Getenv("CI") == "true" {
			t.Fatalf("RootlessKit's driver runs it: %v", err)
		} else if err != nil {
			t.Skipf("RootlessKit's driver runs it: %v", err)
		}
	}
	drivertest.Run(t, transparent)
}
