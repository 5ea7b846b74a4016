package service

import (
	"net/netip"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/postern-net/postern/proto/inet"
	"github.com/postern-net/postern/stack/netplan"
)

func message4(t testing.TB, kind dhcpv4.MessageType, mods ...dhcpv4.Modifier) []byte {
	t.Helper()
	m, err := dhcpv4.New(append([]dhcpv4.Modifier{dhcpv4.WithMessageType(kind), dhcpv4.WithHwAddr(containerMAC[:])}, mods...)...)
	if err != nil {
		t.Fatal(err)
	}
	return m.ToBytes()
}

func discover(t testing.TB) []byte {
	return udp("0.0.0.0:68", "255.255.255.255:67", message4(t, dhcpv4.MessageTypeDiscover))
}

func solicit6(t testing.TB) []byte {
	t.Helper()
	m, err := dhcpv6.NewSolicit(containerMAC[:])
	if err != nil {
		t.Fatal(err)
	}
	return udp("[fe80::5]:546", "[ff02::1:2]:547", m.ToBytes())
}

// lease4 checks the packet around a reply with gVisor's headers, and parses the
// reply with the independent codec.
func lease4(t *testing.T, b []byte, dstMAC MAC, dst string) *dhcpv4.DHCPv4 {
	t.Helper()
	if b == nil {
		t.Fatal("no answer")
	}
	ip := header.IPv4(b[14:])
	if MAC(b[:6]) != dstMAC || !ip.IsValid(len(ip)) || !ip.IsChecksumValid() || ip.DestinationAddress().String() != dst || ip.SourceAddress().String() != "10.0.2.2" {
		t.Fatalf("packet %x", b)
	}
	u := header.UDP(ip.Payload())
	if u.SourcePort() != 67 || u.DestinationPort() != 68 ||
		!u.IsChecksumValid(ip.SourceAddress(), ip.DestinationAddress(), payloadSum(u.Payload())) {
		t.Fatalf("datagram %x", []byte(u))
	}
	m, err := dhcpv4.FromBytes(u.Payload())
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func payloadSum(b []byte) uint16 { return inet.Fold(inet.Sum(b, 0)) }

func TestDHCPv4Exchange(t *testing.T) {
	s := newService()
	offer := lease4(t, ask(t, s, discover(t), true), containerMAC, "10.0.2.100")
	if offer.MessageType() != dhcpv4.MessageTypeOffer || offer.YourIPAddr.String() != "10.0.2.100" {
		t.Fatalf("offer\n%s", offer.Summary())
	}
	request, err := dhcpv4.NewRequestFromOffer(offer)
	if err != nil {
		t.Fatal(err)
	}
	ack := lease4(t, ask(t, s, udp("0.0.0.0:68", "255.255.255.255:67", request.ToBytes()), true), containerMAC, "10.0.2.100")
	if ack.MessageType() != dhcpv4.MessageTypeAck || ack.YourIPAddr.String() != "10.0.2.100" ||
		ack.DNS()[0].String() != "10.0.2.3" || ack.DomainSearch().Labels[0] != "corp.example" {
		t.Errorf("acknowledgement\n%s", ack.Summary())
	}
	// Renewal goes to the server, with no UDP checksum, since the kernel left it
	// to the device.
	renewal := udp("10.0.2.100:68", "10.0.2.2:67", message4(t, dhcpv4.MessageTypeRequest, dhcpv4.WithClientIP(ack.YourIPAddr)))
	renewal[14+20+6] ^= 0x55
	ack = lease4(t, ask(t, s, renewal, true), containerMAC, "10.0.2.100")
	if ack.MessageType() != dhcpv4.MessageTypeAck {
		t.Errorf("renewal\n%s", ack.Summary())
	}
	// To the network's broadcast address, asking for a broadcast.
	f := udp("0.0.0.0:68", "10.0.2.255:67", message4(t, dhcpv4.MessageTypeDiscover, dhcpv4.WithBroadcast(true)))
	lease4(t, ask(t, s, f, true), broadcastMAC, "255.255.255.255")
}

func TestDHCPServerInTheContainerChangesNothing(t *testing.T) {
	s := newService()
	offer := lease4(t, ask(t, s, discover(t), true), containerMAC, "10.0.2.100")
	offer.ServerIPAddr = netip.MustParseAddr("10.0.2.100").AsSlice()
	ask(t, s, udp("10.0.2.100:67", "255.255.255.255:68", offer.ToBytes()), false)
	if got := ask(t, s, udp("10.0.2.100:68", "255.255.255.255:67", offer.ToBytes()), true); got != nil {
		t.Errorf("an offer was answered with %x", got)
	}
	again := lease4(t, ask(t, s, discover(t), true), containerMAC, "10.0.2.100")
	if again.ServerIdentifier().String() != "10.0.2.2" {
		t.Errorf("afterwards\n%s", again.Summary())
	}
}

func TestRefusedIsCounted(t *testing.T) {
	s := newService()
	for i := range 20 {
		m := message4(t, dhcpv4.MessageTypeDiscover)
		m[28+5] = byte(i) // the last byte of the hardware address
		s.Handle(now, udp("0.0.0.0:68", "255.255.255.255:67", m))
	}
	if s.Refused() != 4 {
		t.Errorf("%d refused, want 4", s.Refused())
	}
}

// lease6 is lease4 for DHCPv6.
func lease6(t *testing.T, b []byte) *dhcpv6.Message {
	t.Helper()
	if b == nil {
		t.Fatal("no answer")
	}
	ip := header.IPv6(b[14:])
	if MAC(b[:6]) != containerMAC || !ip.IsValid(len(ip)) || ip.SourceAddress().String() != "fe80::2" || ip.DestinationAddress().String() != "fe80::5" {
		t.Fatalf("packet %x", b)
	}
	u := header.UDP(ip.Payload())
	if u.SourcePort() != 547 || u.DestinationPort() != 546 || !u.IsChecksumValid(ip.SourceAddress(), ip.DestinationAddress(), payloadSum(u.Payload())) {
		t.Fatalf("datagram %x", []byte(u))
	}
	m, err := dhcpv6.MessageFromBytes(u.Payload())
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestDHCPv6Exchange(t *testing.T) {
	s := newService()
	advert := lease6(t, ask(t, s, solicit6(t), true))
	request, err := dhcpv6.NewRequestFromAdvertise(advert)
	if err != nil {
		t.Fatal(err)
	}
	reply := lease6(t, ask(t, s, udp("[fe80::5]:546", "[ff02::1:2]:547", request.ToBytes()), true))
	if reply.MessageType != dhcpv6.MessageTypeReply || reply.Options.OneIANA().Options.OneAddress().IPv6Addr.String() != "fd00::100" ||
		reply.Options.DNS()[0].String() != "fd00::3" || reply.Options.DomainSearchList().Labels[0] != "corp.example" {
		t.Errorf("reply\n%s", reply.Summary())
	}
	for name, f := range map[string][]byte{
		"unicast":            udp("[fe80::5]:546", "[fd00::2]:547", request.ToBytes()),
		"global source":      udp("[fd00::100]:546", "[ff02::1:2]:547", request.ToBytes()),
		"source is gateway":  udp("[fe80::2]:546", "[ff02::1:2]:547", request.ToBytes()),
		"other port":         udp("[fe80::5]:547", "[ff02::1:2]:547", request.ToBytes()),
		"server's message":   udp("[fe80::5]:546", "[ff02::1:2]:547", advert.ToBytes()),
		"not to the service": udp("[fe80::5]:546", "[ff02::1:2]:547", []byte{1}),
	} {
		if got := ask(t, s, f, true); got != nil {
			t.Errorf("%s: answered %x", name, got)
		}
	}
}

func TestConfiguredNameServers(t *testing.T) {
	c := Config{Plan: netplan.Default(), ContainerMAC: containerMAC, GatewayMAC: MAC{2, 0, 0, 0, 0, 9}}
	c.DNSServers = []netip.Addr{addr("192.0.2.53"), addr("2001:db8::53")}
	s := New(c)
	m := lease4(t, ask(t, s, discover(t), true), containerMAC, "10.0.2.100")
	if len(m.DNS()) != 1 || m.DNS()[0].String() != "192.0.2.53" || m.Options.Get(dhcpv4.OptionInterfaceMTU)[0] != 0xff {
		t.Errorf("lease\n%s", m.Summary())
	}
	m6 := lease6(t, ask(t, s, solicit6(t), true))
	if len(m6.Options.DNS()) != 1 || m6.Options.DNS()[0].String() != "2001:db8::53" {
		t.Errorf("lease\n%s", m6.Summary())
	}
	c.DNSServers = []netip.Addr{}
	m = lease4(t, ask(t, New(c), discover(t), true), containerMAC, "10.0.2.100")
	if len(m.DNS()) != 0 {
		t.Errorf("lease\n%s", m.Summary())
	}
}

// TestChecksumsAgainstGVisor verifies neighbour discovery and echo replies with
// gVisor's checksum code instead of our own.
func TestChecksumsAgainstGVisor(t *testing.T) {
	s := newService()
	for name, b := range map[string][]byte{
		"advertisement": s.Advertisement(),
		"neighbour":     ask(t, s, solicit("fd00::100", "fd00::2", "fd00::2"), true),
		"echo":          ask(t, s, ping("fd00::100", "fd00::3"), true),
	} {
		ip := header.IPv6(b[14:])
		if !ip.IsValid(len(ip)) {
			t.Fatalf("%s: packet %x", name, b)
		}
		msg := header.ICMPv6(ip.Payload())
		if got := header.ICMPv6Checksum(header.ICMPv6ChecksumParams{Header: msg, Src: ip.SourceAddress(), Dst: ip.DestinationAddress()}); got != msg.Checksum() {
			t.Errorf("%s: checksum %#x, gVisor says %#x", name, msg.Checksum(), got)
		}
	}
	ra := header.NDPRouterAdvert(header.ICMPv6(header.IPv6(s.Advertisement()[14:]).Payload()).MessageBody())
	if !ra.ManagedAddrConfFlag() || !ra.OtherConfFlag() || ra.RouterLifetime() != routerLifetime {
		t.Errorf("advertisement %x", []byte(ra))
	}
	it, err := ra.Options().Iter(true)
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string]bool{}
	for {
		o, done, err := it.Next()
		if err != nil {
			t.Fatal(err)
		}
		if done {
			break
		}
		switch o := o.(type) {
		case header.NDPSourceLinkLayerAddressOption:
			kinds["link address"] = o.EthernetAddress() == "\x52\x55\x0a\x00\x02\x02"
		case header.NDPPrefixInformation:
			kinds["prefix"] = o.OnLinkFlag() && o.AutonomousAddressConfigurationFlag() && o.Subnet().String() == "fd00::/64" && o.ValidLifetime() == prefixValid
		case header.NDPRecursiveDNSServer:
			a, err := o.Addresses()
			kinds["name server"] = err == nil && len(a) == 1 && a[0].String() == "fd00::3"
		case header.NDPDNSSearchList:
			d, err := o.DomainNames()
			kinds["search list"] = err == nil && len(d) == 1 && d[0] == "corp.example"
		}
	}
	for _, k := range []string{"link address", "prefix", "name server", "search list"} {
		if !kinds[k] {
			t.Errorf("%s is missing or wrong: %v", k, kinds)
		}
	}
	ip := header.IPv4(ask(t, s, ping("10.0.2.100", "10.0.2.2"), true)[14:])
	if !ip.IsChecksumValid() || header.ICMPv4Checksum(header.ICMPv4(ip.Payload()), 0) != header.ICMPv4(ip.Payload()).Checksum() {
		t.Errorf("IPv4 echo %x", []byte(ip))
	}
}

func TestPoolForEverybody(t *testing.T) {
	s := New(Config{
		Plan: netplan.Default(), ContainerMAC: containerMAC, MTU: 1500, DNSServers: []netip.Addr{},
		PoolFirst: addr("10.0.2.15"), PoolLast: addr("10.0.2.30"),
	})
	offer := lease4(t, ask(t, s, discover(t), true), containerMAC, "10.0.2.15")
	if offer.YourIPAddr.String() != "10.0.2.15" || len(offer.DNS()) != 0 || offer.Router()[0].String() != "10.0.2.2" {
		t.Errorf("offer\n%s", offer.Summary())
	}
}

// TestNoNameServers: neither advertisements nor DHCPv6 tell of one.
func TestNoNameServers(t *testing.T) {
	s := New(Config{Plan: netplan.Default(), ContainerMAC: containerMAC, MTU: 1500, DNSServers: []netip.Addr{}})
	if m := lease6(t, ask(t, s, solicit6(t), true)); len(m.Options.DNS()) != 0 {
		t.Errorf("reply\n%s", m.Summary())
	}
	ra := header.NDPRouterAdvert(header.ICMPv6(header.IPv6(s.Advertisement()[14:]).Payload()).MessageBody())
	it, err := ra.Options().Iter(true)
	if err != nil {
		t.Fatal(err)
	}
	prefix := false
	for {
		o, done, err := it.Next()
		if err != nil {
			t.Fatal(err)
		}
		if done {
			break
		}
		switch o.(type) {
		case header.NDPRecursiveDNSServer:
			t.Error("the advertisement has a name server")
		case header.NDPPrefixInformation:
			prefix = true
		}
	}
	if !prefix {
		t.Error("the advertisement has no prefix")
	}
}
