package apisock_test

import (
	"net/netip"
	"testing"

	"github.com/rootless-containers/rootlesskit/v3/pkg/api/client"
	"github.com/rootless-containers/rootlesskit/v3/pkg/port"

	"github.com/postern-net/postern/cmd/postern/internal/apisock/apitest"
)

// asRootlessKit has the addresses that RootlessKit's builtin driver gives.
type asRootlessKit struct{ *apitest.Ports }

func (asRootlessKit) Defaults() (bool, netip.Addr) { return true, netip.MustParseAddr("127.0.0.1") }

// TestDefaulter: only what was left out is filled in, and only for RootlessKit's
// clients.
func TestDefaulter(t *testing.T) {
	c, err := client.New(listen(t, asRootlessKit{&apitest.Ports{}}))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for asked, want := range map[port.Spec]port.Spec{
		{Proto: "tcp", ParentPort: 8080, ChildPort: 80}:                        {Proto: "tcp", ParentIP: "0.0.0.0", ParentPort: 8080, ChildIP: "127.0.0.1", ChildPort: 80},
		{Proto: "udp6", ParentPort: 8081, ChildPort: 80}:                       {Proto: "udp6", ParentIP: "::", ParentPort: 8081, ChildIP: "127.0.0.1", ChildPort: 80},
		{Proto: "tcp", ParentIP: "::1", ParentPort: 8082, ChildPort: 80}:       {Proto: "tcp", ParentIP: "::1", ParentPort: 8082, ChildIP: "127.0.0.1", ChildPort: 80},
		{Proto: "tcp4", ParentPort: 8083, ChildIP: "10.0.2.100", ChildPort: 1}: {Proto: "tcp4", ParentIP: "0.0.0.0", ParentPort: 8083, ChildIP: "10.0.2.100", ChildPort: 1},
	} {
		got, err := c.PortManager().AddPort(t.Context(), asked)
		if err != nil || got.Spec != want {
			t.Errorf("AddPort(%+v) = %+v, %v; want %+v", asked, got, err, want)
		}
	}
}
