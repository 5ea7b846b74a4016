package stack_test

import (
	"net/netip"
	"os"
	"sync"
	"testing"

	"github.com/postern-net/postern/stack/hostsock/nstest"
	"github.com/postern-net/postern/stack/stacktest"
)

// The tests run in a user and network namespace of their own, which plays the
// host; a second network namespace plays the container.
func TestMain(m *testing.M) {
	os.Exit(stacktest.RunChecked(func() int { return nstest.Main(m) }))
}

// The host's address on its LAN, and one that its routes do not lead to.
var (
	host4, host6       = netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8::1")
	nowhere4, nowhere6 = netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8:ffff::1")
)

// lan gives the host its addresses.
var lan = sync.OnceValue(func() error {
	for _, a := range []netip.Addr{host4, host6} {
		if err := nstest.AddAddr("lo", netip.PrefixFrom(a, a.BitLen())); err != nil {
			return err
		}
	}
	return nil
})
