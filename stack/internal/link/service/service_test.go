package service

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/postern-net/postern/proto/icmp"
	"github.com/postern-net/postern/proto/inet"
	"github.com/postern-net/postern/proto/ndp"
	"github.com/postern-net/postern/stack/netplan"
)

var (
	containerMAC = MAC{0x52, 0x54, 0, 0x12, 0x34, 0x56}
	broadcastMAC = MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	now          = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	addr         = netip.MustParseAddr
	port         = netip.MustParseAddrPort
)

func newService() *Service {
	return New(Config{Plan: netplan.Default(), ContainerMAC: containerMAC, MTU: 1500, DNSSearch: []string{"corp.example"}})
}

// frame is one from the container to dst.
func frame(dst MAC, typ uint16, payload []byte) []byte {
	b := append(append([]byte(nil), dst[:]...), containerMAC[:]...)
	return append(binary.BigEndian.AppendUint16(b, typ), payload...)
}

func unhex(s string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		panic(err)
	}
	return b
}

func mac(s string) MAC { return MAC(unhex(strings.ReplaceAll(s, ":", ""))) }

// arp is an ARP packet of the container.
func arp(op byte, sender, target string) []byte {
	b := append(unhex("0001 0800 06 04 00"), op)
	s, t := addr(sender).As4(), addr(target).As4()
	b = append(append(append(b, containerMAC[:]...), s[:]...), make([]byte, 6)...)
	return frame(broadcastMAC, etherARP, append(b, t[:]...))
}

// TestWhoHas: the gateway's own question, as gVisor reads it.
func TestWhoHas(t *testing.T) {
	target := addr("10.0.2.100")
	b := newService().WhoHas(target)
	if len(b) != etherHeaderLen+arpLen || MAC(b[:6]) != broadcastMAC || MAC(b[6:12]) != DefaultGatewayMAC {
		t.Fatalf("frame %x", b)
	}
	p := header.ARP(b[etherHeaderLen:])
	if !p.IsValid() || p.Op() != header.ARPRequest || MAC(p.HardwareAddressSender()) != DefaultGatewayMAC ||
		netip.AddrFrom4([4]byte(p.ProtocolAddressSender())) != addr("10.0.2.2") || netip.AddrFrom4([4]byte(p.ProtocolAddressTarget())) != target {
		t.Errorf("question %x", []byte(p))
	}
	if b := newService().WhoHas(addr("fd00::100")); b != nil {
		t.Errorf("asks %x for an IPv6 address", b)
	}
	v6 := New(Config{Plan: netplan.Plan{V6: netplan.Default().V6}})
	if b := v6.WhoHas(target); b != nil {
		t.Errorf("asks %x without IPv4", b)
	}
}

// icmp6 is an ICMPv6 message with hop limit 255 and a right checksum.
func icmp6(from, to string, msg []byte) []byte {
	src, dst := addr(from), addr(to)
	msg = bytes.Clone(msg)
	binary.BigEndian.PutUint16(msg[2:], inet.Checksum(msg, inet.PseudoSum(src, dst, inet.ProtoICMPv6, len(msg))))
	b := inet.AppendIP(nil, inet.Header{Src: src, Dst: dst, Proto: inet.ProtoICMPv6, TTL: 255}, len(msg))
	return frame(multicastMAC(dst), etherIPv6, append(b, msg...))
}

func solicit(from, to, target string) []byte {
	t := addr(target).As16()
	msg := append(unhex("8700 0000 00000000"), t[:]...)
	if from != "::" {
		msg = append(append(msg, 1, 1), containerMAC[:]...)
	}
	return icmp6(from, to, msg)
}

func udp(from, to string, payload []byte) []byte {
	src, dst := port(from), port(to)
	typ := uint16(etherIPv4)
	if dst.Addr().Is6() {
		typ = etherIPv6
	}
	return frame(broadcastMAC, typ, inet.AppendUDP(nil, src, dst, payload))
}

func ping(from, to string) []byte {
	typ := uint16(etherIPv4)
	if addr(to).Is6() {
		typ = etherIPv6
	}
	return frame(DefaultGatewayMAC, typ, icmp.AppendEcho(nil, icmp.Echo{ID: 7, Seq: 9, Payload: []byte("0123456")}, addr(from), addr(to)))
}

// ask has one frame handled, which must be handled as wanted and have at most
// one reply, from the engine's address. It returns the reply or nil.
func ask(t testing.TB, s *Service, f []byte, handled bool) []byte {
	t.Helper()
	before := bytes.Clone(f)
	replies, got := s.Handle(now, f)
	if got != handled || len(replies) > 1 || !got && replies != nil {
		t.Fatalf("handled %v with %d replies, want handled %v", got, len(replies), handled)
	}
	if !bytes.Equal(f, before) {
		t.Error("the frame was changed")
	}
	if len(replies) == 0 {
		return nil
	}
	if len(replies[0]) < etherHeaderLen || MAC(replies[0][6:12]) != s.cfg.GatewayMAC {
		t.Fatalf("reply %x", replies[0])
	}
	return replies[0]
}

func TestARP(t *testing.T) {
	s := newService()
	for _, target := range []string{"10.0.2.2", "10.0.2.3"} {
		got := ask(t, s, append(arp(1, "10.0.2.100", target), make([]byte, 18)...), true)
		a := addr(target).As4()
		want := "525400123456 52550a000202 0806 0001 0800 06 04 0002 52550a000202" + hex.EncodeToString(a[:]) + "525400123456 0a000264"
		if !bytes.Equal(got, unhex(want)) {
			t.Errorf("%s:\n%x, want\n%x", target, got, unhex(want))
		}
	}
	for name, f := range map[string][]byte{
		"own address":             arp(1, "10.0.2.100", "10.0.2.100"),
		"probe of own address":    arp(1, "0.0.0.0", "10.0.2.100"),
		"probe of pool address":   arp(1, "0.0.0.0", "10.0.2.15"),
		"other neighbour":         arp(1, "10.0.2.100", "10.0.2.9"),
		"outside":                 arp(1, "10.0.2.100", "192.0.2.1"),
		"gateway impersonation":   arp(2, "10.0.2.2", "10.0.2.2"),
		"unasked reply":           arp(2, "10.0.2.100", "10.0.2.2"),
		"other operation":         arp(9, "10.0.2.100", "10.0.2.2"),
		"other hardware":          replace(arp(1, "10.0.2.100", "10.0.2.2"), etherHeaderLen+1, 6),
		"other protocol":          replace(arp(1, "10.0.2.100", "10.0.2.2"), etherHeaderLen+2, 0x86),
		"other address length":    replace(arp(1, "10.0.2.100", "10.0.2.2"), etherHeaderLen+4, 8),
		"sender is a group":       replace(arp(1, "10.0.2.100", "10.0.2.2"), 6, 0x53),
		"protocol address length": replace(arp(1, "10.0.2.100", "10.0.2.2"), etherHeaderLen+5, 16),
	} {
		if got := ask(t, s, f, true); got != nil {
			t.Errorf("%s: answered %x", name, got)
		}
	}
	if ask(t, s, arp(1, "0.0.0.0", "10.0.2.2"), true) == nil {
		t.Error("a probe of the gateway's address was not answered")
	}
}

func replace(f []byte, i int, b byte) []byte {
	f[i] = b
	return f
}

// parse6 reads an IPv6 frame to the container and returns header and message.
func parse6(t testing.TB, b []byte, dst string) (inet.Header, []byte) {
	t.Helper()
	if b == nil {
		t.Fatal("no answer")
	}
	if MAC(b[:6]) != mac(dst) || binary.BigEndian.Uint16(b[12:]) != etherIPv6 {
		t.Errorf("Ethernet header %x", b[:14])
	}
	h, ok := inet.Parse(b[14:])
	if !ok || h.TotalLen != len(b)-14 {
		t.Fatalf("malformed packet %x", b)
	}
	return h, h.Payload(b[14:])
}

func TestNeighborSolicitations(t *testing.T) {
	s := newService()
	for _, target := range []string{"fd00::2", "fd00::3", "fe80::2"} {
		for _, c := range []struct {
			from, to, ether string
			solicited       bool
		}{
			{"fd00::100", ndp.SolicitedNode(addr(target)).String(), "52:54:00:12:34:56", true},
			{"fe80::1234", target, "52:54:00:12:34:56", true},
			{"::", ndp.SolicitedNode(addr(target)).String(), "33:33:00:00:00:01", false},
		} {
			h, msg := parse6(t, ask(t, s, solicit(c.from, c.to, target), true), c.ether)
			n, ok := ndp.ParseNeighborAdvert(h.Dst, msg)
			if !ok || !ndp.Valid(h, msg) || h.Src != addr(target) || n.Target != addr(target) || n.LinkAddr != DefaultGatewayMAC ||
				!n.Router || !n.Override || n.Solicited != c.solicited || c.solicited != (h.Dst == addr(c.from)) {
				t.Errorf("%s from %s: header %+v, advertisement %+v, ok %v", target, c.from, h, n, ok)
			}
		}
	}
	forwarded := solicit("fd00::100", "fd00::2", "fd00::2")
	forwarded[14+7] = 64
	wrongSum := solicit("fd00::100", "fd00::2", "fd00::2")
	wrongSum[14+42] ^= 1
	advert := bytes.Clone(solicit("fd00::100", "ff02::1", "fd00::2")[14+40:])
	advert[0], advert[4], advert[24] = ndp.TypeNeighborAdvert, 0xa0, 2
	for name, f := range map[string][]byte{
		"detection of own address":   solicit("::", "ff02::1:ff00:100", "fd00::100"),
		"detection of link-local":    solicit("::", "ff02::1:ff12:3456", "fe80::5054:ff:fe12:3456"),
		"own address":                solicit("fd00::100", "ff02::1:ff00:100", "fd00::100"),
		"other neighbour":            solicit("fd00::100", "ff02::1:ff00:9", "fd00::9"),
		"outside":                    solicit("fd00::100", "ff02::1:ff00:1", "2001:db8::1"),
		"from the gateway":           solicit("fd00::2", "ff02::1:ff00:2", "fd00::2"),
		"from outside":               solicit("2001:db8::1", "fd00::2", "fd00::2"),
		"forwarded":                  forwarded,
		"wrong checksum":             wrongSum,
		"claim of gateway's address": icmp6("fe80::1", "ff02::1", advert),
		"redirect":                   icmp6("fe80::2", "fd00::100", append(unhex("8900 0000 00000000"), make([]byte, 32)...)),
		"rogue router":               icmp6("fe80::1", "ff02::1", unhex("8600 0000 4000 0708 0000000000000000")),
		"sender is a group":          replace(solicit("fd00::100", "fd00::2", "fd00::2"), 6, 0x53),
	} {
		if got := ask(t, s, f, true); got != nil {
			t.Errorf("%s: answered %x", name, got)
		}
	}
	// Nothing of that changed what the engine says.
	h, msg := parse6(t, ask(t, s, solicit("fd00::100", "fd00::2", "fd00::2"), true), "52:54:00:12:34:56")
	if n, ok := ndp.ParseNeighborAdvert(h.Dst, msg); !ok || n.LinkAddr != DefaultGatewayMAC {
		t.Errorf("afterwards: %+v %v", n, ok)
	}
}

func TestRouterSolicitations(t *testing.T) {
	s := newService()
	const rs = "8500 0000 00000000"
	for _, c := range []struct{ from, options, to, ether string }{
		{"fe80::1234", "0101 525400123456", "fe80::1234", "52:54:00:12:34:56"},
		{"::", "", "ff02::1", "33:33:00:00:00:01"},
	} {
		h, msg := parse6(t, ask(t, s, icmp6(c.from, "ff02::2", unhex(rs+c.options)), true), c.ether)
		if !ndp.Valid(h, msg) || msg[0] != ndp.TypeRouterAdvert || h.Src != GatewayLinkLocal || h.Dst != addr(c.to) {
			t.Errorf("from %s: header %+v, message %x", c.from, h, msg)
		}
	}
	_, msg := parse6(t, s.Advertisement(), "33:33:00:00:00:01")
	for name, option := range map[string]string{
		"router":       "40c0 0708",
		"link address": "0101 52550a000202",
		"MTU":          "0501 0000 000005dc",
		"prefix":       "0304 40c0 00015180 00003840 00000000 fd000000000000000000000000000000",
		"name server":  "1903 0000 00000708 fd000000000000000000000000000003",
		"search list":  "1f03 0000 00000708 04636f7270076578616d706c6500",
	} {
		if !bytes.Contains(msg, unhex(option)) {
			t.Errorf("%s is missing in %x", name, msg)
		}
	}
	s.SetSearch([]string{"new.example"})
	_, msg = parse6(t, s.Advertisement(), "33:33:00:00:00:01")
	if bytes.Contains(msg, []byte("corp")) || !bytes.Contains(msg, []byte("\x03new\x07example\x00")) {
		t.Errorf("after SetSearch: %q", msg)
	}
}

func TestEcho(t *testing.T) {
	s := newService()
	for _, c := range []struct{ from, to string }{
		{"10.0.2.100", "10.0.2.2"}, {"10.0.2.20", "10.0.2.3"},
		{"fd00::100", "fd00::2"}, {"fd00::5", "fd00::3"}, {"fe80::1234", "fe80::2"}, {"fe80::1234", "fd00::2"},
	} {
		b := ask(t, s, append(ping(c.from, c.to), 0, 0, 0), true)
		if b == nil {
			t.Errorf("%s to %s: no answer", c.from, c.to)
			continue
		}
		h, ok := inet.Parse(b[14:])
		msg := h.Payload(b[14:])
		e, isEcho := icmp.ParseEcho(h.Src.Is6(), msg)
		if !ok || !isEcho || !e.Reply || e.ID != 7 || e.Seq != 9 || string(e.Payload) != "0123456" ||
			h.Src != addr(c.to) || h.Dst != addr(c.from) || !icmp.ChecksumOK(h.Src, h.Dst, msg) || MAC(b[:6]) != containerMAC {
			t.Errorf("%s to %s: header %+v, echo %+v", c.from, c.to, h, e)
		}
	}
	wrong4, wrong6 := ping("10.0.2.100", "10.0.2.2"), ping("fd00::100", "fd00::2")
	wrong4[len(wrong4)-1]++
	wrong6[len(wrong6)-1]++
	for name, f := range map[string][]byte{"IPv4": wrong4, "IPv6": wrong6} {
		if got := ask(t, s, f, true); got != nil {
			t.Errorf("%s: a wrong checksum was answered with %x", name, got)
		}
	}
}

func TestEchoWithLengthsThatDisagree(t *testing.T) {
	// CVE-2020-10756: the length in the header is not that of the frame.
	s := newService()
	for _, to := range []string{"10.0.2.2", "fd00::2"} {
		from, off := "10.0.2.100", 14+2
		if addr(to).Is6() {
			from, off = "fd00::100", 14+4
		}
		good := ping(from, to)
		for n := range 1 << 16 {
			f := bytes.Clone(good)
			binary.BigEndian.PutUint16(f[off:], uint16(n))
			replies, _ := s.Handle(now, f)
			for _, r := range replies {
				if len(r) > len(good) {
					t.Fatalf("%s, length %d: reply of %d bytes to a frame of %d", to, n, len(r), len(good))
				}
			}
		}
	}
}

func TestNotHandled(t *testing.T) {
	s := newService()
	fragment := ping("10.0.2.100", "10.0.2.2")
	fragment[14+6] = 0x20
	badHeader := ping("10.0.2.100", "10.0.2.2")
	badHeader[14+10] ^= 1
	reply := frame(DefaultGatewayMAC, etherIPv4, icmp.AppendEcho(nil, icmp.Echo{Reply: true}, addr("10.0.2.100"), addr("10.0.2.2")))
	cases := map[string][]byte{
		"runt":                    make([]byte, 13),
		"LLC":                     frame(broadcastMAC, 60, make([]byte, 60)),
		"VLAN":                    frame(broadcastMAC, 0x8100, make([]byte, 60)),
		"no IPv4 header":          frame(DefaultGatewayMAC, etherIPv4, make([]byte, 19)),
		"no IPv6 header":          frame(DefaultGatewayMAC, etherIPv6, make([]byte, 39)),
		"TCP":                     frame(DefaultGatewayMAC, etherIPv4, inet.AppendIP(nil, inet.Header{Src: addr("10.0.2.100"), Dst: addr("10.0.2.2"), Proto: inet.ProtoTCP}, 0)),
		"datagram":                udp("10.0.2.100:68", "192.0.2.1:53", []byte("x")),
		"datagram over IPv6":      udp("[fd00::100]:546", "[2001:db8::1]:53", []byte("x")),
		"name service":            udp("10.0.2.100:68", "10.0.2.3:53", []byte("x")),
		"somebody else's DHCP":    udp("10.0.2.100:68", "192.0.2.1:67", []byte("x")),
		"somebody else's DHCPv6":  udp("[fd00::100]:546", "[2001:db8::1]:547", []byte("x")),
		"DHCP to the wrong port":  udp("10.0.2.100:67", "10.0.2.2:68", []byte("x")),
		"echo to the outside":     ping("10.0.2.100", "192.0.2.1"),
		"echo to outside, IPv6":   ping("fd00::100", "2001:db8::1"),
		"echo to the container":   ping("10.0.2.20", "10.0.2.100"),
		"echo from outside":       ping("192.0.2.1", "10.0.2.2"),
		"echo from loopback":      ping("127.0.0.1", "10.0.2.2"),
		"echo from broadcast":     ping("10.0.2.255", "10.0.2.2"),
		"echo from network":       ping("10.0.2.0", "10.0.2.2"),
		"echo from resolver":      ping("10.0.2.3", "10.0.2.2"),
		"echo from nobody":        ping("::", "fd00::2"),
		"echo from outside, IPv6": ping("2001:db8::1", "fd00::2"),
		"echo reply":              reply,
		"echo fragment":           fragment,
		"wrong header checksum":   badHeader,
		"unreachable":             icmp6("fd00::100", "fd00::2", append([]byte{1, 4, 0, 0, 0, 0, 0, 0}, make([]byte, 48)...)),
		"mDNS":                    udp("10.0.2.100:5353", "224.0.0.251:5353", []byte("x")),
	}
	for name, f := range cases {
		t.Run(name, func(t *testing.T) { ask(t, s, f, false) })
	}
	if n := testing.AllocsPerRun(100, func() {
		for _, f := range cases {
			s.Handle(now, f)
		}
	}); n != 0 {
		t.Errorf("%v allocations for frames that are not handled", n)
	}
}

func TestMulticastMembershipEndsHere(t *testing.T) {
	s := newService()
	igmp := inet.AppendIP(nil, inet.Header{Src: addr("10.0.2.100"), Dst: addr("224.0.0.22"), Proto: inet.ProtoIGMP}, 8)
	for _, f := range [][]byte{
		frame(broadcastMAC, etherIPv4, append(igmp, make([]byte, 8)...)),
		icmp6("fe80::1", "ff02::1", append([]byte{130}, make([]byte, 23)...)),
		icmp6("fe80::1", "ff02::16", append([]byte{143}, make([]byte, 7)...)),
		// As Linux sends it, behind a hop-by-hop router alert.
		frame(multicastMAC(addr("ff02::16")), etherIPv6, unhex("60000000 0010 00 01 fe800000000000000000000000000001 ff020000000000000000000000000016"+
			"3a00 0502 0000 0100 8f00 0000 0000 0000")),
	} {
		if got := ask(t, s, f, true); got != nil {
			t.Errorf("answered with %x", got)
		}
	}
}

func TestFamiliesThatAreOff(t *testing.T) {
	small := New(Config{Plan: netplan.Default(), ContainerMAC: containerMAC, MTU: 1279})
	only6 := New(Config{Plan: netplan.Plan{V6: netplan.Default().V6}, ContainerMAC: containerMAC})
	for name, f := range map[string][]byte{
		"solicitation": solicit("fd00::100", "fd00::2", "fd00::2"),
		"link-local":   solicit("fe80::5", "fe80::2", "fe80::2"),
		"router":       icmp6("fe80::5", "ff02::2", unhex("8500 0000 00000000")),
	} {
		if got := ask(t, small, f, true); got != nil {
			t.Errorf("%s: answered %x with IPv6 off", name, got)
		}
	}
	ask(t, small, ping("fe80::1", "fe80::2"), false)
	if small.Advertisement() != nil {
		t.Error("an advertisement with IPv6 off")
	}
	if ask(t, small, ping("10.0.2.100", "10.0.2.2"), true) == nil {
		t.Error("no echo with IPv6 off")
	}
	if got := ask(t, only6, arp(1, "10.0.2.100", "10.0.2.2"), true); got != nil {
		t.Errorf("answered %x with IPv4 off", got)
	}
	ask(t, only6, ping("10.0.2.100", "10.0.2.2"), false)
	if got := ask(t, only6, udp("0.0.0.0:68", "255.255.255.255:67", make([]byte, 300)), true); got != nil {
		t.Errorf("leased %x with IPv4 off", got)
	}
	if ask(t, only6, ping("fd00::100", "fd00::2"), true) == nil {
		t.Error("no echo with IPv4 off")
	}
}

func TestEveryPrefixOfEveryFrame(t *testing.T) {
	s := newService()
	frames := [][]byte{
		arp(1, "10.0.2.100", "10.0.2.2"), ping("10.0.2.100", "10.0.2.2"), ping("fd00::100", "fd00::2"),
		solicit("fd00::100", "fd00::2", "fd00::2"), icmp6("fe80::5", "ff02::2", unhex("8500 0000 00000000 0101 525400123456")),
		discover(t), solicit6(t),
	}
	for i, f := range frames {
		for n := range f {
			replies, _ := s.Handle(now, f[:n:n])
			if len(replies) != 0 {
				t.Errorf("frame %d: %d of %d bytes have a reply", i, n, len(f))
			}
		}
		if ask(t, s, f, true) == nil {
			t.Errorf("frame %d has no reply", i)
		}
		// DHCP to short payloads: libslirp's CVE-2021-3592 to 3595.
		for n := range 301 {
			s.Handle(now, udp("0.0.0.0:68", "255.255.255.255:67", f[:min(n, len(f))]))
			s.Handle(now, udp("[fe80::5]:546", "[ff02::1:2]:547", f[:min(n, len(f))]))
		}
	}
}

func FuzzHandle(f *testing.F) {
	for _, b := range [][]byte{
		arp(1, "10.0.2.100", "10.0.2.2"), ping("10.0.2.100", "10.0.2.2"), ping("fd00::100", "fd00::2"),
		solicit("fd00::100", "fd00::2", "fd00::2"), icmp6("fe80::5", "ff02::2", unhex("8500 0000 00000000 0101 525400123456")),
		discover(f), solicit6(f), udp("10.0.2.100:1", "192.0.2.1:2", nil),
	} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s := newService()
		replies, handled := s.Handle(now, b)
		if len(replies) > 1 || len(replies) > 0 && !handled {
			t.Fatalf("%d replies, handled %v", len(replies), handled)
		}
		for _, r := range replies {
			if len(r) > max(1514, len(b)) || MAC(r[6:12]) != DefaultGatewayMAC {
				t.Errorf("reply %x", r)
			}
			if binary.BigEndian.Uint16(r[12:]) == etherARP {
				continue
			}
			if h, ok := inet.Parse(r[14:]); !ok || h.TotalLen != len(r)-14 {
				t.Errorf("malformed reply %x", r)
			}
			// No answer makes another answer: two engines on a link do not loop.
			if again, _ := s.Handle(now, r); len(again) != 0 {
				t.Errorf("the reply %x is answered", r)
			}
		}
		if got := ask(t, s, arp(1, "10.0.2.100", "10.0.2.2"), true); got == nil {
			t.Error("the gateway is gone")
		}
	})
}

func BenchmarkHandleForeign(b *testing.B) {
	s := newService()
	f := udp("10.0.2.100:1000", "192.0.2.1:53", make([]byte, 100))
	b.ReportAllocs()
	for b.Loop() {
		s.Handle(now, f)
	}
}
