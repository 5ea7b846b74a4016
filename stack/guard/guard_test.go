package guard

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/postern-net/postern/stack/netplan"
)

var protos = []Proto{TCP, UDP, ICMP}

// bad4 are addresses that must not be reached in any spelling.
var bad4 = map[string]string{
	"0.0.0.0": ReasonUnspecified, "0.0.0.1": ReasonReserved, "0.1.2.3": ReasonReserved, "0.255.255.255": ReasonReserved,
	"127.0.0.1": ReasonHostLoopback, "127.0.0.53": ReasonHostLoopback, "127.1.2.3": ReasonHostLoopback, "127.255.255.255": ReasonHostLoopback,
	"169.254.0.0": ReasonLinkLocal, "169.254.1.1": ReasonLinkLocal, "169.254.170.2": ReasonLinkLocal, "169.254.255.255": ReasonLinkLocal,
	"169.254.169.254": ReasonMetadata, "100.100.100.200": ReasonMetadata, "168.63.129.16": ReasonMetadata, "192.0.0.192": ReasonMetadata,
	"224.0.0.0": ReasonMulticast, "224.0.0.1": ReasonMulticast, "224.0.0.251": ReasonMulticast, "232.1.1.1": ReasonMulticast, "239.255.255.250": ReasonMulticast, "239.255.255.255": ReasonMulticast,
	"240.0.0.0": ReasonReserved, "240.0.0.1": ReasonReserved, "250.1.1.1": ReasonReserved, "255.255.255.254": ReasonReserved,
	"255.255.255.255": ReasonBroadcast,
	"10.0.2.0":        ReasonOwnSubnet, "10.0.2.1": ReasonOwnSubnet, "10.0.2.100": ReasonOwnSubnet, "10.0.2.254": ReasonOwnSubnet, "10.0.2.255": ReasonBroadcast,
}

var good4 = []string{
	"1.1.1.1", "8.8.8.8", "10.0.0.1", "10.0.1.255", "10.0.3.0", "10.255.255.255", "100.64.0.1", "100.100.100.100", "126.255.255.255", "128.0.0.1",
	"168.63.129.15", "169.253.255.255", "169.255.0.0", "172.16.0.1", "172.17.0.1", "192.0.0.8", "192.0.2.1", "192.168.0.1", "192.168.1.255",
	"198.18.0.1", "198.51.100.1", "203.0.113.1", "223.255.255.255",
}

// spellings are the IPv6 forms that carry an IPv4 address. always says that the
// form itself is refused, whatever it carries.
var spellings = []struct {
	name   string
	always bool
	of     func(a [4]byte) netip.Addr
}{
	{"v4-mapped", true, func(a [4]byte) netip.Addr { return tail("::ffff:0:0", a) }},
	{"v4-compatible", true, func(a [4]byte) netip.Addr { return tail("::", a) }},
	{"siit", true, func(a [4]byte) netip.Addr { return tail("::ffff:0:0:0", a) }},
	{"nat64", false, func(a [4]byte) netip.Addr { return tail("64:ff9b::", a) }},
	{"nat64 local /96", false, func(a [4]byte) netip.Addr { return tail("64:ff9b:1:fffe::", a) }},
	{"nat64 local /64", false, func(a [4]byte) netip.Addr { return at("64:ff9b:1:7::", 9, a) }},
	{"6to4", false, func(a [4]byte) netip.Addr { return at("2002::1", 2, a) }},
	{"6to4 bare", false, func(a [4]byte) netip.Addr { return at("2002::", 2, a) }},
	{"teredo server", false, func(a [4]byte) netip.Addr { return at("2001::8000:f227:3f57:fefe", 4, a) }},
	{"teredo client", false, func(a [4]byte) netip.Addr {
		return at("2001:0:4136:e378:8000:63bf::", 12, [4]byte{^a[0], ^a[1], ^a[2], ^a[3]})
	}},
	{"isatap", false, func(a [4]byte) netip.Addr { return tail("2001:db8::5efe:0:0", a) }},
	{"isatap global", false, func(a [4]byte) netip.Addr { return tail("2001:db8::200:5efe:0:0", a) }},
}

func tail(base string, a [4]byte) netip.Addr { return at(base, 12, a) }

func at(base string, i int, a [4]byte) netip.Addr {
	b := netip.MustParseAddr(base).As16()
	copy(b[i:], a[:])
	return netip.AddrFrom16(b)
}

var bad6 = map[string]string{
	"::": ReasonUnspecified, "::1": ReasonHostLoopback, "::2": ReasonReserved, "::ffff": ReasonReserved,
	"::1.2.3.4": ReasonReserved, "::ffff:0:1.2.3.4": ReasonReserved, "0:0:0:1::": ReasonUnspecified, "1::8.8.8.8": ReasonReserved, "ff:ffff::808:808": ReasonReserved,
	"64:ff9b::": ReasonUnspecified, "64:ff9b:2::808:808": ReasonReserved, "64:ff9a::808:808": ReasonReserved,
	// The /48 and /56 forms of RFC 6052 for 127.0.0.1.
	"64:ff9b:1:7f00:0:100::": ReasonUnspecified, "64:ff9b:1:7f:0:1::": ReasonUnspecified,
	"fe80::1": ReasonLinkLocal, "fe80::2": ReasonLinkLocal, "fe80::a9fe:a9fe": ReasonLinkLocal, "febf:ffff::1": ReasonLinkLocal,
	"fec0::1": ReasonSiteLocal, "feff::1": ReasonSiteLocal,
	"ff00::": ReasonMulticast, "ff01::1": ReasonMulticast, "ff02::1": ReasonMulticast, "ff02::fb": ReasonMulticast, "ff0e::1": ReasonMulticast, "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff": ReasonMulticast,
	"fd00:ec2::254": ReasonMetadata, "fd00:ec2::23": ReasonMetadata, "fd20:ce::254": ReasonMetadata, "fd00:c1::a9fe:a9fe": ReasonMetadata,
	"fd00:42::42": ReasonMetadata, "fd00:a9fe:a9fe::1": ReasonMetadata, "fd00:100::100:200": ReasonMetadata,
	"fd00::": ReasonOwnSubnet, "fd00::1": ReasonOwnSubnet, "fd00::100": ReasonOwnSubnet, "fd00::ffff:ffff:ffff:ffff": ReasonOwnSubnet,
	"fd00::2": ReasonGateway, "fd00::3": ReasonResolver,
}

var good6 = []string{
	"200::1", "201:db8::1", "2001:db8::1", "2001:4860:4860::8888", "2001:1::1", "2606:4700::1111", "2a00::1", "3fff::1",
	"fc00::1", "fd00:0:0:1::1", "fd00:ec3::254", "fd12:3456::1", "fdff::1", "2002:808:808::1", "64:ff9b::808:808",
}

// zoned addresses are refused whatever they are.
var zoned = []string{"fe80::1%eth0", "fe80::1%1", "fd00::2%tap0", "2001:db8::1%eth0", "::1%lo", "ff02::1%eth0", "::ffff:127.0.0.1%lo", "fd00:ec2::254%1"}

// form is one row of the table. An empty reason means allowed; "any" any refusal.
type form struct {
	name, reason string
	addr         netip.Addr
}

func forms() (list []form) {
	for s, reason := range bad4 {
		a := netip.MustParseAddr(s)
		list = append(list, form{s, reason, a})
		for _, sp := range spellings {
			list = append(list, form{sp.name + " of " + s, "any", sp.of(a.As4())})
		}
	}
	for _, s := range good4 {
		a := netip.MustParseAddr(s)
		list = append(list, form{s, "", a})
		for _, sp := range spellings {
			reason := ""
			if sp.always {
				reason = "any"
			}
			if last := a.As4()[3]; sp.name == "nat64 local /64" && (last == 0 || last == 127 || last >= 224) {
				reason = "any" // as a /96 the same bytes read LAST.0.0.0
			}
			list = append(list, form{sp.name + " of " + s, reason, sp.of(a.As4())})
		}
	}
	for s, reason := range bad6 {
		list = append(list, form{s, reason, netip.MustParseAddr(s)})
	}
	for _, s := range good6 {
		list = append(list, form{s, "", netip.MustParseAddr(s)})
	}
	for _, s := range zoned {
		list = append(list, form{s, ReasonZone, netip.MustParseAddr(s)})
	}
	return append(list, form{"invalid", ReasonInvalid, netip.Addr{}},
		form{"10.0.2.2", ReasonGateway, netip.MustParseAddr("10.0.2.2")},
		form{"10.0.2.3", ReasonResolver, netip.MustParseAddr("10.0.2.3")})
}

func TestDecideTable(t *testing.T) {
	list := forms()
	if len(list) < 300 {
		t.Fatalf("only %d forms", len(list))
	}
	t.Logf("%d forms", len(list))
	p := Policy{Plan: netplan.Default()}
	for _, f := range list {
		target := netip.AddrPortFrom(f.addr, 80)
		for _, proto := range protos {
			v := p.Decide(proto, target)
			switch {
			case f.reason == "" && (!v.Allowed() || v.Dial != target):
				t.Errorf("%s (%s): refused: %q, dial %v", f.name, f.addr, v.Reason, v.Dial)
			case f.reason == "any" && v.Allowed():
				t.Errorf("%s (%s): allowed", f.name, f.addr)
			case f.reason != "any" && v.Reason != f.reason:
				t.Errorf("%s (%s): reason %q, want %q", f.name, f.addr, v.Reason, f.reason)
			case !v.Allowed() && v.Dial.IsValid():
				t.Errorf("%s: refused but dial is %v", f.name, v.Dial)
			}
		}
	}
}

func TestHostLoopbackChangesTheGatewayOnly(t *testing.T) {
	closed, open := Policy{Plan: netplan.Default()}, Policy{Plan: netplan.Default(), HostLoopback: true}
	for _, f := range forms() {
		target := netip.AddrPortFrom(f.addr, 80)
		for _, proto := range protos {
			want := closed.Decide(proto, target)
			if proto != ICMP && f.addr == open.Plan.Of(f.addr).Gateway {
				want = Verdict{Dial: netip.AddrPortFrom(Loopback(f.addr), 80)}
			}
			if got := open.Decide(proto, target); got != want {
				t.Errorf("%s: %+v, want %+v", f.name, got, want)
			}
		}
	}
}

func TestHostLoopbackPorts(t *testing.T) {
	p := Policy{Plan: netplan.Default(), HostLoopback: true, HostLoopbackPorts: []uint16{80, 443}}
	for target, dial := range map[string]string{
		"10.0.2.2:80": "127.0.0.1:80", "10.0.2.2:443": "127.0.0.1:443", "[fd00::2]:80": "[::1]:80",
		"10.0.2.2:81": "", "[fd00::2]:22": "", "10.0.2.3:80": "", "127.0.0.1:80": "", "[::1]:80": "", "[::ffff:10.0.2.2]:80": "",
	} {
		v := p.Decide(TCP, netip.MustParseAddrPort(target))
		if dial == "" && v.Allowed() || dial != "" && (!v.Allowed() || v.Dial != netip.MustParseAddrPort(dial)) {
			t.Errorf("%s: %+v, want dial %q", target, v, dial)
		}
	}
	p.HostLoopback = false
	if v := p.Decide(TCP, netip.MustParseAddrPort("10.0.2.2:80")); v.Reason != ReasonGateway {
		t.Errorf("ports opened the gateway without HostLoopback: %+v", v)
	}
}

func TestPortZero(t *testing.T) {
	p := Policy{Plan: netplan.Default(), HostLoopback: true}
	for _, s := range []string{"192.0.2.1", "2001:db8::1", "10.0.2.2"} {
		target := netip.AddrPortFrom(netip.MustParseAddr(s), 0)
		for _, proto := range []Proto{TCP, UDP} {
			if v := p.Decide(proto, target); v.Reason != ReasonPortZero {
				t.Errorf("%s: %+v", s, v)
			}
		}
	}
	if v := p.Decide(ICMP, netip.MustParseAddrPort("192.0.2.1:0")); !v.Allowed() {
		t.Errorf("ICMP: %+v", v)
	}
}

func TestFamilyOffAndZeroPolicy(t *testing.T) {
	p := Policy{Plan: netplan.Default()}
	p.Plan.V6 = netplan.Family{}
	if v := p.Decide(TCP, netip.MustParseAddrPort("[2001:db8::1]:80")); v.Reason != ReasonFamilyOff {
		t.Errorf("IPv6 off: %+v", v)
	}
	if r := p.Source(netip.MustParseAddr("fd00::100")); r != ReasonFamilyOff {
		t.Errorf("IPv6 off: source %q", r)
	}
	if v := (Policy{}).Decide(TCP, netip.MustParseAddrPort("192.0.2.1:80")); v.Reason != ReasonFamilyOff {
		t.Errorf("zero policy: %+v", v)
	}
}

func TestSource(t *testing.T) {
	p := Policy{Plan: netplan.Default()}
	for s, want := range map[string]string{
		"10.0.2.100": "", "10.0.2.15": "", "10.0.2.1": "", "10.0.2.254": "", "fd00::100": "", "fd00::abcd:1": "", "fd00::ffff:ffff:ffff:ffff": "",
		"10.0.2.0": ReasonNetwork, "fd00::": ReasonNetwork, "10.0.2.255": ReasonBroadcast,
		"10.0.2.2": ReasonGateway, "fd00::2": ReasonGateway, "10.0.2.3": ReasonResolver, "fd00::3": ReasonResolver,
		"10.0.3.1": ReasonForeign, "0.0.0.0": ReasonForeign, "127.0.0.1": ReasonForeign, "203.0.113.9": ReasonForeign, "224.0.0.1": ReasonForeign,
		"255.255.255.255": ReasonForeign, "::": ReasonForeign, "::1": ReasonForeign, "fe80::1": ReasonForeign, "ff02::1": ReasonForeign,
		"2001:db8::1": ReasonForeign, "fd00:0:0:1::1": ReasonForeign,
		"::ffff:10.0.2.100": ReasonMapped, "fe80::1%eth0": ReasonZone, "fd00::100%eth0": ReasonZone,
	} {
		if got := p.Source(netip.MustParseAddr(s)); got != want {
			t.Errorf("Source(%s) = %q, want %q", s, got, want)
		}
	}
	if got := p.Source(netip.Addr{}); got != ReasonInvalid {
		t.Errorf("Source of nothing = %q", got)
	}
}

func TestBroadcastOfOddPrefix(t *testing.T) {
	v4, err := netplan.NewFamily(netip.MustParsePrefix("172.20.0.0/14"))
	if err != nil {
		t.Fatal(err)
	}
	p := Policy{Plan: netplan.Plan{V4: v4}}
	if v := p.Decide(UDP, netip.MustParseAddrPort("172.23.255.255:9")); v.Reason != ReasonBroadcast {
		t.Errorf("%+v", v)
	}
	if v := p.Decide(UDP, netip.MustParseAddrPort("172.24.0.0:9")); !v.Allowed() {
		t.Errorf("%+v", v)
	}
	if r := p.Source(netip.MustParseAddr("172.23.255.255")); r != ReasonBroadcast {
		t.Errorf("source %q", r)
	}
}

func TestDecideDoesNotAllocate(t *testing.T) {
	p := Policy{Plan: netplan.Default()}
	for _, s := range []string{"192.0.2.1:80", "[2001:db8::5efe:192.0.2.1]:80", "[2002:7f00:1::]:80"} {
		target := netip.MustParseAddrPort(s)
		if n := testing.AllocsPerRun(100, func() { p.Decide(UDP, target) }); n != 0 {
			t.Errorf("%s: %v allocations", s, n)
		}
	}
}

// FuzzDecide holds what no change may break: nothing that is, or unmaps to,
// loopback or link-local is let out, and only the gateway is dialled as another.
func FuzzDecide(f *testing.F) {
	for _, fm := range forms() {
		b, _ := fm.addr.MarshalBinary()
		f.Add(b, uint16(80), uint8(0), true)
	}
	f.Fuzz(func(t *testing.T, b []byte, port uint16, proto uint8, loopback bool) {
		var a netip.Addr
		if err := a.UnmarshalBinary(b); err != nil {
			return
		}
		p := Policy{Plan: netplan.Default(), HostLoopback: loopback}
		v := p.Decide(Proto(proto%3), netip.AddrPortFrom(a, port))
		if !v.Allowed() {
			return
		}
		u := a.Unmap()
		if u.IsLoopback() || u.IsLinkLocalUnicast() || u.IsMulticast() || u.IsUnspecified() || a.Zone() != "" || a.Is4In6() {
			t.Fatalf("%v allowed", a)
		}
		if v.Dial != netip.AddrPortFrom(a, port) && (!loopback || a != p.Plan.Of(a).Gateway) {
			t.Fatalf("%v is dialled as %v", a, v.Dial)
		}
		if p.Plan.Of(a).Prefix.Contains(a) && a != p.Plan.Of(a).Gateway {
			t.Fatalf("%v is of the virtual network", a)
		}
	})
}

func ExamplePolicy_Decide() {
	p := Policy{Plan: netplan.Default()}
	fmt.Println(p.Decide(TCP, netip.MustParseAddrPort("[64:ff9b::7f00:1]:22")).Reason)
	fmt.Println(p.Decide(TCP, netip.MustParseAddrPort("192.0.2.1:22")).Dial)
	// Output:
	// host loopback
	// 192.0.2.1:22
}
