package nstest

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// Addresses of the router that NewRouter makes and of what lies beyond it.
var (
	// Router4 and Router6 are the router's own, on the link.
	Router4, Router6 = netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8:1::2")
	// Behind is the router's own, not on the link.
	Behind = netip.MustParseAddr("203.0.113.1")
	// Beyond and Beyond6 take one more hop.
	Beyond, Beyond6 = netip.MustParseAddr("203.0.113.200"), netip.MustParseAddr("2001:db8:2:8000::1")
	// Unreachable and Prohibited are refused by the router with ICMP errors.
	Unreachable, Prohibited = netip.MustParseAddr("203.0.113.65"), netip.MustParseAddr("203.0.113.33")
)

// NewRouter makes a namespace that is the router of a link with MTU 1500, and
// routes to it. The link goes away with the test.
func NewRouter(tb testing.TB) *Namespace {
	tb.Helper()
	r := New(tb)
	prefix := netip.MustParsePrefix
	near4, near6 := prefix("192.0.2.1/24"), prefix("2001:db8:1::1/64")
	err := steps(
		func() error { return AddVeth("v0", "v1", r.File) },
		func() error { return AddAddr("v0", near4) },
		func() error { return AddAddr("v0", near6) },
		func() error { return LinkUp("v0") },
		func() error { return AddRoute(prefix("203.0.113.0/24"), Router4, unix.RTN_UNICAST) },
		func() error { return AddRoute(prefix("2001:db8:2::/48"), Router6, unix.RTN_UNICAST) },
	)
	tb.Cleanup(func() { _ = LinkDelete("v0") })
	if err != nil {
		tb.Fatal(err)
	}
	r.Do(tb, func() error {
		return steps(
			func() error { return Sysctl("net/ipv4/ip_forward", "1") },
			func() error { return Sysctl("net/ipv6/conf/all/forwarding", "1") },
			func() error { return AddAddr("lo", netip.PrefixFrom(Behind, 32)) },
			func() error { return AddAddr("v1", netip.PrefixFrom(Router4, 24)) },
			func() error { return AddAddr("v1", netip.PrefixFrom(Router6, 64)) },
			func() error { return LinkUp("v1") },
			func() error { return AddRoute(prefix("203.0.113.128/25"), near4.Addr(), unix.RTN_UNICAST) },
			func() error { return AddRoute(prefix("203.0.113.64/26"), netip.Addr{}, unix.RTN_UNREACHABLE) },
			func() error { return AddRoute(prefix("203.0.113.32/27"), netip.Addr{}, unix.RTN_PROHIBIT) },
			func() error { return AddRoute(prefix("2001:db8:2:8000::/49"), near6.Addr(), unix.RTN_UNICAST) },
		)
	})
	return r
}

func steps(list ...func() error) error {
	for _, f := range list {
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}
