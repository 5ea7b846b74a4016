package netplan

import (
	"net/netip"
	"strings"
	"testing"
)

func TestNewFamily(t *testing.T) {
	for _, c := range []struct{ prefix, gateway, resolver, container string }{
		{"10.0.2.0/24", "10.0.2.2", "10.0.2.3", "10.0.2.100"},
		{"192.168.7.128/25", "192.168.7.130", "192.168.7.131", "192.168.7.228"},
		{"172.16.0.0/12", "172.16.0.2", "172.16.0.3", "172.16.0.100"},
		{"fd00::/64", "fd00::2", "fd00::3", "fd00::100"},
		{"fd12:3456::/48", "fd12:3456::2", "fd12:3456::3", "fd12:3456::100"},
	} {
		f, err := NewFamily(netip.MustParsePrefix(c.prefix))
		if err != nil {
			t.Fatalf("%s: %v", c.prefix, err)
		}
		if f.Gateway.String() != c.gateway || f.Resolver.String() != c.resolver || f.Container.String() != c.container {
			t.Errorf("%s: got %s %s %s", c.prefix, f.Gateway, f.Resolver, f.Container)
		}
		if !f.Owned(f.Gateway) || !f.Owned(f.Resolver) || f.Owned(f.Container) {
			t.Errorf("%s: Owned is wrong", c.prefix)
		}
	}
}

func TestNewFamilyRefuses(t *testing.T) {
	for prefix, want := range map[string]string{
		"10.0.2.1/24":        "host bits set, use 10.0.2.0/24",
		"10.0.2.0/26":        "prefix length must be 1 to 25",
		"0.0.0.0/0":          "prefix length must be 1 to 25",
		"fd00::/65":          "prefix length must be 1 to 64",
		"127.0.0.0/8":        "loopback",
		"169.254.0.0/16":     "link-local",
		"fe80::/64":          "link-local",
		"ff00::/8":           "multicast",
		"::ffff:10.0.2.0/24": "v4-mapped",
	} {
		p, err := netip.ParsePrefix(prefix)
		if err == nil {
			_, err = NewFamily(p)
		}
		if err == nil || !strings.Contains(err.Error(), want) && !strings.Contains(prefix, "ffff") {
			t.Errorf("NewFamily(%s) = %v, want error with %q", prefix, err, want)
		}
	}
	if _, err := NewFamily(netip.Prefix{}); err == nil {
		t.Error("zero prefix accepted")
	}
}

func TestPool(t *testing.T) {
	f, l := Default().V4.Pool()
	if f.String() != "10.0.2.15" || l.String() != "10.0.2.30" {
		t.Errorf("pool %s-%s", f, l)
	}
	if f, _ := (Family{}).Pool(); f.IsValid() {
		t.Error("pool of an absent family")
	}
}

func TestCheckPool(t *testing.T) {
	v4, v6 := Default().V4, Default().V6
	for _, tc := range []struct {
		f           Family
		first, last string
		ok          bool
	}{
		{v4, "10.0.2.15", "10.0.2.30", true},
		{v4, "10.0.2.15", "10.0.2.15", true},
		{v4, "10.0.2.1", "10.0.2.1", true},
		{v4, "10.0.2.4", "10.0.2.254", true},
		{v4, "", "", true},
		{v4, "10.0.2.30", "10.0.2.15", false},
		{v4, "10.0.2.15", "", false},
		{v4, "", "10.0.2.15", false},
		{v4, "10.0.1.250", "10.0.2.30", false},
		{v4, "10.0.2.15", "10.0.3.30", false},
		{v4, "10.0.2.0", "10.0.2.1", false},
		{v4, "10.0.2.15", "10.0.2.255", false},
		{v4, "10.0.2.1", "10.0.2.9", false},
		{v4, "10.0.2.3", "10.0.2.9", false},
		{v4, "fd00::15", "fd00::30", false},
		{v6, "fd00::15", "fd00::30", true},
		{Family{}, "", "", true},
		{Family{}, "10.0.2.15", "10.0.2.30", false},
	} {
		var first, last netip.Addr
		if tc.first != "" {
			first = netip.MustParseAddr(tc.first)
		}
		if tc.last != "" {
			last = netip.MustParseAddr(tc.last)
		}
		if err := tc.f.CheckPool(first, last); (err == nil) != tc.ok {
			t.Errorf("%q to %q in %s: %v", tc.first, tc.last, tc.f.Prefix, err)
		}
	}
}
