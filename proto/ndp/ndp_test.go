package ndp

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/postern-net/postern/proto/inet"
)

var (
	router    = netip.MustParseAddr("fe80::2")
	host      = netip.MustParseAddr("fe80::5054:ff:fe12:3456")
	gateway   = netip.MustParseAddr("fd00::2")
	routerMAC = MAC{0x52, 0x55, 0, 0, 0, 2}
	hostMAC   = MAC{0x52, 0x54, 0, 0x12, 0x34, 0x56}
	cmpAddr   = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
)

func unhex(s string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		panic(err)
	}
	return b
}

// packet puts a message into a packet with hop limit 255 and a right checksum.
func packet(from, to netip.Addr, msg []byte) []byte {
	b := inet.AppendIP(nil, inet.Header{Src: from, Dst: to, Proto: inet.ProtoICMPv6, TTL: hopLimit}, len(msg))
	b = append(b, msg...)
	if len(msg) >= 4 {
		binary.BigEndian.PutUint16(b[42:], 0)
		binary.BigEndian.PutUint16(b[42:], inet.Checksum(b[40:], inet.PseudoSum(from, to, inet.ProtoICMPv6, len(msg))))
	}
	return b
}

func parse(t *testing.T, b []byte) (inet.Header, []byte) {
	t.Helper()
	h, ok := inet.Parse(b)
	if !ok || h.TotalLen != len(b) {
		t.Fatalf("malformed packet %x", b)
	}
	msg := h.Payload(b)
	if !Valid(h, msg) {
		t.Fatalf("not a valid message: %x", msg)
	}
	return h, msg
}

func TestRouterAdvertGolden(t *testing.T) {
	b := AppendRouterAdvert([]byte("x"), RouterAdvert{
		Lifetime: 1800 * time.Second, Managed: true, Other: true,
		Prefix: netip.MustParsePrefix("fd00::/64"), Valid: 86400 * time.Second, Preferred: 14400 * time.Second,
		MTU: 65520, LinkAddr: routerMAC,
		DNS: []netip.Addr{netip.MustParseAddr("fd00::3")}, Search: []string{"corp.example", "lan"}, DNSLifetime: time.Hour,
	}, router, host)[1:]
	h, msg := parse(t, b)
	if h.Src != router || h.Dst != host {
		t.Errorf("header %+v", h)
	}
	want := "86 00 XXXX 40 c0 0708 00000000 00000000" + // RFC 4861 4.2
		"0101 525500000002" + // 4.6.1
		"0501 0000 0000fff0" + // 4.6.4
		"0304 40 c0 00015180 00003840 00000000 fd000000000000000000000000000000" + // 4.6.2
		"1903 0000 00000e10 fd000000000000000000000000000003" + // RFC 8106 5.1
		"1f04 0000 00000e10 04636f7270 076578616d706c65 00 036c616e 00 0000000000" // 5.2
	want = strings.ReplaceAll(want, "XXXX", hex.EncodeToString(msg[2:4]))
	if got := hex.EncodeToString(msg); got != strings.ReplaceAll(want, " ", "") {
		t.Errorf("got\n%s\nwant\n%s", got, strings.ReplaceAll(want, " ", ""))
	}
}

func TestRouterAdvertLeavesOutWhatIsNotSet(t *testing.T) {
	_, msg := parse(t, AppendRouterAdvert(nil, RouterAdvert{Prefix: netip.MustParsePrefix("fd12::/48")}, router, AllNodes()))
	if len(msg) != 16+32 || msg[16+3] != 0x80 {
		t.Errorf("message %x: want one prefix option without the autonomous flag", msg)
	}
	if bytes.Count(msg[4:16], []byte{0}) != 11 {
		t.Errorf("flags or times in %x", msg[4:16])
	}
}

func TestRouterAdvertIsBounded(t *testing.T) {
	ra := RouterAdvert{
		Lifetime: time.Hour * 1e6, Valid: time.Duration(1<<63 - 1), Preferred: -time.Second, MTU: 1280, LinkAddr: routerMAC,
		Prefix: netip.MustParsePrefix("fd00::/64"), DNSLifetime: time.Hour,
	}
	for n := range 200 {
		ra.Search = append(ra.Search, strings.Repeat("a", n%63+1)+".example")
		ra.DNS = append(ra.DNS, gateway)
		b := AppendRouterAdvert(nil, ra, router, AllNodes())
		_, msg := parse(t, b)
		if len(b) > 1280 {
			t.Fatalf("%d names: %d bytes", n+1, len(b))
		}
		if _, ok := findLinkAddr(msg[16:], optSourceLinkAddr); !ok {
			t.Fatalf("%d names: malformed options", n+1)
		}
		if n == 199 && len(b) < 1200 {
			t.Errorf("the search list was cut to a packet of %d bytes", len(b))
		}
	}
}

func TestNeighborAdvertRoundTrip(t *testing.T) {
	for _, want := range []Neighbor{
		{Target: gateway, LinkAddr: routerMAC, Router: true, Solicited: true, Override: true},
		{Target: gateway, LinkAddr: routerMAC, Override: true},
		{Target: router, Router: true},
	} {
		h, msg := parse(t, AppendNeighborAdvert(nil, want, gateway, host))
		got, ok := ParseNeighborAdvert(h.Dst, msg)
		if !ok || !cmp.Equal(got, want, cmpAddr) {
			t.Errorf("ok %v, difference %s", ok, cmp.Diff(want, got, cmpAddr))
		}
	}
	_, msg := parse(t, AppendNeighborAdvert(nil, Neighbor{Target: gateway, Solicited: true}, gateway, AllNodes()))
	if _, ok := ParseNeighborAdvert(AllNodes(), msg); ok {
		t.Error("a solicited advertisement to a multicast address was accepted")
	}
}

const (
	solicitGateway = "87 00 0000 00000000 fd000000000000000000000000000002"
	sourceOption   = "01 01 525400123456"
)

func TestParseNeighborSolicit(t *testing.T) {
	unspecified := netip.IPv6Unspecified()
	for _, c := range []struct {
		name     string
		src, dst netip.Addr
		msg      string
		ok       bool
		linkAddr MAC
	}{
		{"as Linux sends it", host, SolicitedNode(gateway), solicitGateway + sourceOption, true, hostMAC},
		{"unicast probe", host, gateway, solicitGateway, true, MAC{}},
		{"unknown option first", host, gateway, solicitGateway + "0e01 000000000000" + sourceOption, true, hostMAC},
		{"address detection", unspecified, SolicitedNode(gateway), solicitGateway, true, MAC{}},
		{"address detection with nonce", unspecified, SolicitedNode(gateway), solicitGateway + "0e01 010203040506", true, MAC{}},
		{"address detection to one host", unspecified, gateway, solicitGateway, false, MAC{}},
		{"address detection with address", unspecified, SolicitedNode(gateway), solicitGateway + sourceOption, false, MAC{}},
		{"option of no length", host, gateway, solicitGateway + "0100 525400123456", false, MAC{}},
		{"option too long", host, gateway, solicitGateway + "0102 525400123456", false, MAC{}},
		{"cut option", host, gateway, solicitGateway + "0101 5254", false, MAC{}},
		{"link address of 14 bytes", host, gateway, solicitGateway + "0102" + strings.Repeat("11", 14), true, MAC{}},
		{"multicast target", host, gateway, "87 00 0000 00000000 ff020000000000000000000000000002", false, MAC{}},
		{"short", host, gateway, "87 00 0000 00000000 fd0000000000000000000000000000", false, MAC{}},
		{"advertisement", host, gateway, "88" + solicitGateway[2:], false, MAC{}},
	} {
		n, ok := ParseNeighborSolicit(c.src, c.dst, unhex(c.msg))
		if ok != c.ok || ok && (n.Target != gateway || n.LinkAddr != c.linkAddr) {
			t.Errorf("%s: ok %v, %+v", c.name, ok, n)
		}
	}
}

func TestParseRouterSolicit(t *testing.T) {
	for _, c := range []struct {
		src      netip.Addr
		msg      string
		ok       bool
		linkAddr MAC
	}{
		{host, "85 00 0000 00000000" + sourceOption, true, hostMAC},
		{host, "85 00 0000 00000000", true, MAC{}},
		{netip.IPv6Unspecified(), "85 00 0000 00000000", true, MAC{}},
		{netip.IPv6Unspecified(), "85 00 0000 00000000" + sourceOption, false, MAC{}},
		{host, "85 00 0000 000000", false, MAC{}},
		{host, "86 00 0000 00000000", false, MAC{}},
		{host, "85 00 0000 00000000 0100", false, MAC{}},
	} {
		if linkAddr, ok := ParseRouterSolicit(c.src, unhex(c.msg)); ok != c.ok || linkAddr != c.linkAddr {
			t.Errorf("%s from %v: %x %v, want %x %v", c.msg, c.src, linkAddr, ok, c.linkAddr, c.ok)
		}
	}
}

func TestValid(t *testing.T) {
	good := packet(host, gateway, unhex(solicitGateway))
	for name, change := range map[string]func(b []byte){
		"as it is":  func([]byte) {},
		"forwarded": func(b []byte) { b[7] = 254 },
		"checksum":  func(b []byte) { b[42] ^= 1 },
		"source":    func(b []byte) { b[20] ^= 1 },
		"code":      func(b []byte) { b[41] = 1; b[43]-- },
		"UDP":       func(b []byte) { b[6] = 17 },
	} {
		b := bytes.Clone(good)
		change(b)
		h, ok := inet.Parse(b)
		if !ok {
			t.Fatalf("%s: malformed", name)
		}
		if got := Valid(h, h.Payload(b)); got != (name == "as it is") {
			t.Errorf("%s: valid %v", name, got)
		}
	}
	h, _ := inet.Parse(good)
	for n := range 8 {
		if Valid(h, good[40:40+n]) {
			t.Errorf("%d bytes are valid", n)
		}
	}
	h.MoreFragments = true
	if Valid(h, good[40:]) {
		t.Error("a fragment is valid")
	}
}

func TestSolicitedNode(t *testing.T) {
	if got := SolicitedNode(netip.MustParseAddr("4037::1:800:200e:8c6c")); got.String() != "ff02::1:ff0e:8c6c" {
		t.Errorf("%v, want the example of RFC 4291", got)
	}
}

func TestParsersAllocateNothing(t *testing.T) {
	msg := unhex(solicitGateway + sourceOption)
	if n := testing.AllocsPerRun(100, func() { ParseNeighborSolicit(host, gateway, msg) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(unhex(solicitGateway + sourceOption))
	f.Add(unhex("85 00 0000 00000000" + sourceOption))
	f.Add(unhex("88" + solicitGateway[2:] + "0201 525400123456"))
	f.Fuzz(func(t *testing.T, msg []byte) {
		for _, src := range []netip.Addr{host, netip.IPv6Unspecified()} {
			if _, ok := ParseRouterSolicit(src, msg); ok && len(msg) < 8 {
				t.Error("short solicitation accepted")
			}
			n, ok := ParseNeighborSolicit(src, gateway, msg)
			if ok && (n.Target.IsMulticast() || src.IsUnspecified() && n.LinkAddr != (MAC{})) {
				t.Errorf("accepted %+v from %v", n, src)
			}
		}
		n, ok := ParseNeighborAdvert(gateway, msg)
		if !ok {
			return
		}
		b := AppendNeighborAdvert(nil, n, gateway, host)
		back, ok := ParseNeighborAdvert(host, b[40:])
		if !ok || !cmp.Equal(back, n, cmpAddr) {
			t.Errorf("ok %v, difference %s", ok, cmp.Diff(n, back, cmpAddr))
		}
	})
}

func FuzzAppendRouterAdvert(f *testing.F) {
	f.Add("corp.example lan", uint32(1500), int64(1e9))
	f.Fuzz(func(t *testing.T, search string, mtu uint32, life int64) {
		b := AppendRouterAdvert(nil, RouterAdvert{
			Search: strings.Fields(search), MTU: mtu, Lifetime: time.Duration(life), DNSLifetime: time.Duration(life),
		}, router, AllNodes())
		h, ok := inet.Parse(b)
		if !ok || len(b) > 1280 || !Valid(h, h.Payload(b)) {
			t.Errorf("%d bytes, ok %v", len(b), ok)
		}
	})
}
