package portdriver

import (
	"net/netip"
	"strings"
	"testing"
)

var (
	both = Addresses{
		Container4: netip.MustParseAddr("10.0.2.100"), Gateway4: netip.MustParseAddr("10.0.2.2"),
		Container6: netip.MustParseAddr("fd00::100"), Gateway6: netip.MustParseAddr("fd00::2"),
	}
	only4 = Addresses{Container4: both.Container4, Gateway4: both.Gateway4}
	only6 = Addresses{Container6: both.Container6, Gateway6: both.Gateway6}
	// onLink is for drivers whose replies leave by the container's interface.
	onLink = Addresses{
		Container4: both.Container4, Gateway4: both.Gateway4, Network4: netip.MustParsePrefix("10.0.2.0/24"),
		Container6: both.Container6, Gateway6: both.Gateway6, Network6: netip.MustParsePrefix("fd00::/64"),
	}
)

func TestRoutes(t *testing.T) {
	for _, tt := range []struct {
		name           string
		addrs          Addresses
		client, target string // target "80" is any address
		want           string // "source>target" by preference
	}{
		// A client's own address is what the container sees.
		{"remote 4", both, "192.0.2.7:5000", "80", "192.0.2.7:5000>10.0.2.100:80 [fd00::2]:5000>[fd00::100]:80"},
		{"remote 6", both, "[2001:db8::7]:5000", "80", "[2001:db8::7]:5000>[fd00::100]:80 10.0.2.2:5000>10.0.2.100:80"},
		{"mapped", both, "[::ffff:192.0.2.7]:5000", "80", "192.0.2.7:5000>10.0.2.100:80 [fd00::2]:5000>[fd00::100]:80"},
		{"to one address", both, "192.0.2.7:5000", "10.0.2.100:80", "192.0.2.7:5000>10.0.2.100:80"},
		{"to another of its addresses", both, "192.0.2.7:5000", "172.17.0.2:80", "192.0.2.7:5000>172.17.0.2:80"},
		{"to its loopback", both, "192.0.2.7:5000", "127.0.0.1:80", "192.0.2.7:5000>127.0.0.1:80"},
		{"6 to its loopback", both, "[2001:db8::7]:5000", "[::1]:80", "[2001:db8::7]:5000>[::1]:80"},

		// The other family shows the gateway.
		{"4 to 6", both, "192.0.2.7:5000", "[fd00::100]:80", "[fd00::2]:5000>[fd00::100]:80"},
		{"6 to 4", both, "[2001:db8::7]:5000", "10.0.2.100:80", "10.0.2.2:5000>10.0.2.100:80"},
		{"4 to loopback 6", both, "192.0.2.7:5000", "[::1]:80", "[fd00::2]:5000>[::1]:80"},
		{"6 to loopback 4", both, "[2001:db8::7]:5000", "127.0.0.1:80", "10.0.2.2:5000>127.0.0.1:80"},

		// Loopback clients show the gateway, or stay loopback.
		{"loopback 4", both, "127.0.0.1:5000", "80", "10.0.2.2:5000>10.0.2.100:80 [fd00::2]:5000>[fd00::100]:80"},
		{"loopback 6", both, "[::1]:5000", "80", "[fd00::2]:5000>[fd00::100]:80 10.0.2.2:5000>10.0.2.100:80"},
		{"other loopback", both, "127.9.9.9:5000", "10.0.2.100:80", "10.0.2.2:5000>10.0.2.100:80"},
		{"mapped loopback", both, "[::ffff:127.0.0.1]:5000", "10.0.2.100:80", "10.0.2.2:5000>10.0.2.100:80"},
		{"loopback to loopback", both, "127.0.0.1:5000", "127.0.0.1:80", "127.0.0.1:5000>127.0.0.1:80"},
		{"other loopback to loopback", both, "127.9.9.9:5000", "127.0.0.53:53", "127.0.0.1:5000>127.0.0.53:53"},
		{"loopback 6 to loopback 4", both, "[::1]:5000", "127.0.0.1:80", "127.0.0.1:5000>127.0.0.1:80"},
		{"loopback 4 to loopback 6", both, "127.0.0.1:5000", "[::1]:80", "[::1]:5000>[::1]:80"},

		// A LAN with the container's network's addresses.
		{"same network", both, "10.0.2.15:5000", "10.0.2.100:80", "10.0.2.15:5000>10.0.2.100:80"},
		{"same network, on link", onLink, "10.0.2.15:5000", "10.0.2.100:80", "10.0.2.2:5000>10.0.2.100:80"},
		{"same network 6, on link", onLink, "[fd00::15]:5000", "[fd00::100]:80", "[fd00::2]:5000>[fd00::100]:80"},
		{"another network, on link", onLink, "10.0.3.15:5000", "10.0.2.100:80", "10.0.3.15:5000>10.0.2.100:80"},

		// A unix socket's client has no address.
		{"unix", both, "", "80", "10.0.2.2:0>10.0.2.100:80 [fd00::2]:0>[fd00::100]:80"},
		{"unix to loopback", both, "", "127.0.0.1:80", "127.0.0.1:0>127.0.0.1:80"},
		{"unix to 6", both, "", "[fd00::100]:80", "[fd00::2]:0>[fd00::100]:80"},

		// Addresses that mean something else inside.
		{"link-local 6", both, "[fe80::7%eth0]:5000", "[fd00::100]:80", "[fd00::2]:5000>[fd00::100]:80"},
		{"link-local 4", both, "169.254.7.7:5000", "10.0.2.100:80", "10.0.2.2:5000>10.0.2.100:80"},
		{"link-local to loopback", both, "[fe80::7%eth0]:5000", "[::1]:80", "[fd00::2]:5000>[::1]:80"},
		{"the container's own", both, "10.0.2.100:5000", "10.0.2.100:80", "10.0.2.2:5000>10.0.2.100:80"},
		{"the gateway's", both, "10.0.2.2:5000", "10.0.2.100:80", "10.0.2.2:5000>10.0.2.100:80"},
		{"the container's own 6", both, "[fd00::100]:5000", "[fd00::100]:80", "[fd00::2]:5000>[fd00::100]:80"},
		{"no address 4", both, "0.0.0.0:5000", "10.0.2.100:80", "10.0.2.2:5000>10.0.2.100:80"},
		{"a neighbour in the network", both, "10.0.2.77:5000", "10.0.2.100:80", "10.0.2.77:5000>10.0.2.100:80"},

		// One family.
		{"only 4", only4, "192.0.2.7:5000", "80", "192.0.2.7:5000>10.0.2.100:80"},
		{"6 to only 4", only4, "[2001:db8::7]:5000", "80", "10.0.2.2:5000>10.0.2.100:80"},
		{"loopback 6 to only 4", only4, "[::1]:5000", "80", "10.0.2.2:5000>10.0.2.100:80"},
		{"4 to only 6", only6, "192.0.2.7:5000", "80", "[fd00::2]:5000>[fd00::100]:80"},
		{"4 to loopback 6 of only 4", only4, "192.0.2.7:5000", "[::1]:80", ""},
		{"6 to loopback 6 of only 4", only4, "[2001:db8::7]:5000", "[::1]:80", "[2001:db8::7]:5000>[::1]:80"},
		{"loopback to loopback 6 of only 4", only4, "127.0.0.1:5000", "[::1]:80", "[::1]:5000>[::1]:80"},
		{"none", Addresses{}, "192.0.2.7:5000", "80", ""},
	} {
		var client netip.AddrPort
		if tt.client != "" {
			client = netip.MustParseAddrPort(tt.client)
		}
		target := netip.AddrPortFrom(netip.Addr{}, 80)
		if tt.target != "80" {
			target = netip.MustParseAddrPort(tt.target)
		}
		var got []string
		for _, r := range tt.addrs.Routes(client, target) {
			got = append(got, r.Source.String()+">"+r.Target.String())
		}
		if s := strings.Join(got, " "); s != tt.want {
			t.Errorf("%s: %s to %s: %q, want %q", tt.name, tt.client, tt.target, s, tt.want)
		}
	}
}
