package inet

import (
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var cmpAddr = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A datagram from 192.168.0.100 to 192.168.0.1 and one from fd00::100 to fd00::3;
// the IPv4 header checksum was added up by hand.
const (
	ip4Header = "4500 0024 1c46 4000 4011 9ccd c0a8 0064 c0a8 0001"
	udpHeader = "9c40 0035 0010 0000 0102 0304 0506 0708"
	ip6Header = "6001 2345 0010 11 40 fd000000000000000000000000000100 fd000000000000000000000000000003"
)

func TestParseIPv4(t *testing.T) {
	b := unhex(t, ip4Header+udpHeader+"deadbeef")
	h, ok := Parse(b)
	want := Header{
		Src: netip.MustParseAddr("192.168.0.100"), Dst: netip.MustParseAddr("192.168.0.1"),
		Proto: ProtoUDP, TTL: 64, HeaderLen: 20, TotalLen: 36, ID: 0x1c46, DontFragment: true,
	}
	if !ok || !cmp.Equal(h, want, cmpAddr) {
		t.Fatalf("ok %v, difference %s", ok, cmp.Diff(want, h, cmpAddr))
	}
	if p := h.Payload(b); len(p) != 16 || h.Fragment() {
		t.Errorf("payload %x, fragment %v", p, h.Fragment())
	}
	if !IPv4HeaderOK(b, h.HeaderLen) {
		t.Error("a right header checksum was refused")
	}
	b[8]--
	if IPv4HeaderOK(b, h.HeaderLen) {
		t.Error("a wrong header checksum was accepted")
	}
}

func TestParseIPv4Refuses(t *testing.T) {
	good := unhex(t, ip4Header+udpHeader)
	for n := range good {
		if _, ok := Parse(good[:n]); ok {
			t.Errorf("%d of %d bytes accepted", n, len(good))
		}
	}
	for name, change := range map[string]func(b []byte){
		"version 5":            func(b []byte) { b[0] = 0x55 },
		"header length 16":     func(b []byte) { b[0] = 0x44 },
		"header beyond packet": func(b []byte) { b[0] = 0x4f },
		"total below header":   func(b []byte) { b[3] = 19 },
		"total length 0":       func(b []byte) { b[3] = 0 },
		"total beyond bytes":   func(b []byte) { b[3] = 37 },
	} {
		b := unhex(t, ip4Header+udpHeader)
		change(b)
		if _, ok := Parse(b); ok {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestParseQuoteAcceptsACutPacket(t *testing.T) {
	b := unhex(t, ip4Header+udpHeader)
	if h, ok := ParseQuote(b[:28]); !ok || h.TotalLen != 28 || len(h.Payload(b[:28])) != 8 {
		t.Errorf("ok %v, header %+v", ok, h)
	}
	if _, ok := ParseQuote(b[:19]); ok {
		t.Error("a cut header was accepted")
	}
	b6 := unhex(t, ip6Header+udpHeader)
	if h, ok := ParseQuote(b6[:44]); !ok || h.TotalLen != 44 {
		t.Errorf("ok %v, header %+v", ok, h)
	}
	if h, ok := ParseQuote(append(b, 1, 2)); !ok || h.TotalLen != 36 {
		t.Errorf("padding: ok %v, header %+v", ok, h)
	}
}

func TestParseIPv4Fragment(t *testing.T) {
	b := unhex(t, ip4Header+udpHeader)
	b[6], b[7] = 0x20, 0x03
	h, ok := Parse(b)
	if !ok || h.FragOffset != 24 || !h.MoreFragments || h.DontFragment || !h.Fragment() {
		t.Errorf("ok %v, header %+v", ok, h)
	}
}

func TestParseIPv6(t *testing.T) {
	h, ok := Parse(unhex(t, ip6Header+udpHeader+"00"))
	want := Header{
		Src: netip.MustParseAddr("fd00::100"), Dst: netip.MustParseAddr("fd00::3"),
		Proto: ProtoUDP, TTL: 64, HeaderLen: 40, TotalLen: 56, DontFragment: true,
	}
	if !ok || !cmp.Equal(h, want, cmpAddr) {
		t.Errorf("ok %v, difference %s", ok, cmp.Diff(want, h, cmpAddr))
	}
	good := unhex(t, ip6Header+udpHeader)
	for n := range good {
		if _, ok := Parse(good[:n]); ok {
			t.Errorf("%d of %d bytes accepted", n, len(good))
		}
	}
}

// ip6 makes a packet with the given first next-header value and bytes after the
// fixed header.
func ip6(t *testing.T, next byte, rest string) []byte {
	b := unhex(t, ip6Header+rest)
	b[5], b[6] = byte(len(b)-IPv6HeaderLen), next
	return b
}

func TestParseIPv6Extensions(t *testing.T) {
	const routerAlert = "3a00 0502 0000 0100"
	for _, c := range []struct {
		name      string
		packet    []byte
		proto     uint8
		headerLen int
		offset    int
		more      bool
		id        uint32
	}{
		{name: "hop by hop", packet: ip6(t, 0, routerAlert+"8f00"), proto: ProtoICMPv6, headerLen: 48},
		{name: "long options", packet: ip6(t, 60, "1101"+strings.Repeat("00", 14)+udpHeader), proto: ProtoUDP, headerLen: 56},
		{name: "routing, fragment 0", packet: ip6(t, 43, "2c00 0000 0000 0000 1100 0001 01020304"), proto: ProtoUDP, headerLen: 56, more: true, id: 0x01020304},
		{name: "atomic fragment", packet: ip6(t, 44, "1100 0000 00000007"), proto: ProtoUDP, headerLen: 48, id: 7},
		{name: "later fragment is not walked", packet: ip6(t, 44, "0000 0008 00000007 ffff"), proto: 0, headerLen: 48, offset: 8, id: 7},
		{name: "no next header", packet: ip6(t, 59, ""), proto: 59, headerLen: 40},
		{name: "ESP ends the walk", packet: ip6(t, 50, "0000"), proto: 50, headerLen: 40},
	} {
		h, ok := Parse(c.packet)
		if !ok || h.Proto != c.proto || h.HeaderLen != c.headerLen || h.FragOffset != c.offset || h.MoreFragments != c.more || h.ID != c.id {
			t.Errorf("%s: ok %v, header %+v", c.name, ok, h)
		}
	}
	for name, b := range map[string][]byte{
		"chain too long":          ip6(t, 0, strings.Repeat("0000 0000 0000 0000", maxExtensions)+udpHeader),
		"option beyond packet":    ip6(t, 0, "3a01 0000 0000 0000"),
		"cut extension":           ip6(t, 44, "1100 0000"),
		"extension in padding":    append(ip6(t, 0, ""), 58, 0, 0, 0, 0, 0, 0, 0),
		"v4-mapped source":        unhex(t, "6000 0000 0000 11 40 00000000000000000000ffff7f000001 fd000000000000000000000000000003"),
		"v4-mapped destination":   unhex(t, "6000 0000 0000 11 40 fd000000000000000000000000000003 00000000000000000000ffff7f000001"),
		"jumbogram":               ip6(t, 0, "")[:40],
		"version 4 in IPv6 bytes": unhex(t, "4001 2345 0010 11 40 fd000000000000000000000000000100 fd000000000000000000000000000003"),
	} {
		if h, ok := ParseIPv6(b); ok {
			t.Errorf("%s: accepted as %+v", name, h)
		}
	}
}

func TestAppendIPRoundTrip(t *testing.T) {
	for _, want := range []Header{
		{Src: netip.MustParseAddr("10.0.2.2"), Dst: netip.MustParseAddr("10.0.2.100"), Proto: ProtoICMP, TTL: 7, TOS: 0xb9, ID: 0xffff, HeaderLen: 20, TotalLen: 25},
		{Src: netip.MustParseAddr("fd00::2"), Dst: netip.MustParseAddr("fd00::100"), Proto: ProtoTCP, TTL: 64, TOS: 0xb9, HeaderLen: 40, TotalLen: 45, DontFragment: true},
	} {
		in := want
		in.TTL %= DefaultTTL // 0 asks for the default
		b := AppendIP([]byte("prefix"), in, 5)
		b = append(b[len("prefix"):], 1, 2, 3, 4, 5)
		got, ok := Parse(b)
		if !ok || !cmp.Equal(got, want, cmpAddr) {
			t.Errorf("ok %v, difference %s", ok, cmp.Diff(want, got, cmpAddr))
		}
		if want.Src.Is4() && !IPv4HeaderOK(b, got.HeaderLen) {
			t.Error("wrong header checksum")
		}
	}
}

func TestParseAllocatesNothing(t *testing.T) {
	b4, b6 := unhex(t, ip4Header+udpHeader), unhex(t, ip6Header+udpHeader)
	if n := testing.AllocsPerRun(100, func() {
		for _, b := range [][]byte{b4, b6} {
			h, _ := Parse(b)
			ParseUDP(h.Payload(b))
			Checksum(b, PseudoSum(h.Src, h.Dst, h.Proto, len(b)))
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{ip4Header + udpHeader, ip6Header + udpHeader} {
		b, _ := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		quote, quoteOK := ParseQuote(b)
		if quoteOK {
			quote.Payload(b)
		}
		h, ok := Parse(b)
		if !ok {
			return
		}
		if !quoteOK || !cmp.Equal(h, quote, cmpAddr) {
			t.Errorf("a whole packet parses as %+v, as a quote %v %+v", h, quoteOK, quote)
		}
		if h.HeaderLen > h.TotalLen || h.TotalLen > len(b) || h.Src.Is4In6() || h.Src.Is4() != h.Dst.Is4() {
			t.Errorf("inconsistent header %+v", h)
		}
		if u, ok := ParseUDP(h.Payload(b)); ok && len(u.Payload) > len(b)-UDPHeaderLen {
			t.Errorf("payload of %d bytes in a packet of %d", len(u.Payload), len(b))
		}
	})
}

func TestBroadcast(t *testing.T) {
	for prefix, want := range map[string]string{
		"10.0.2.0/24": "10.0.2.255", "10.0.2.7/25": "10.0.2.127", "172.16.0.0/12": "172.31.255.255",
		"0.0.0.0/0": "255.255.255.255", "192.0.2.1/32": "192.0.2.1",
	} {
		if got := Broadcast(netip.MustParsePrefix(prefix)); got.String() != want {
			t.Errorf("%s: %v, want %s", prefix, got, want)
		}
	}
}
