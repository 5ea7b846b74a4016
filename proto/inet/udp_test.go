package inet

import (
	"net/netip"
	"testing"
)

func TestUDPRoundTrip(t *testing.T) {
	for _, c := range []struct{ src, dst string }{
		{"10.0.2.2:67", "255.255.255.255:68"},
		{"[fe80::2]:547", "[fe80::1]:546"},
	} {
		src, dst := netip.MustParseAddrPort(c.src), netip.MustParseAddrPort(c.dst)
		for _, payload := range []string{"", "odd", "even"} {
			b := AppendUDP([]byte{9}, src, dst, []byte(payload))[1:]
			h, ok := Parse(b)
			if !ok || h.Src != src.Addr() || h.Dst != dst.Addr() || h.TotalLen != len(b) {
				t.Fatalf("%s: ok %v, header %+v", c.dst, ok, h)
			}
			msg := h.Payload(b)
			if Checksum(msg, PseudoSum(h.Src, h.Dst, h.Proto, len(msg))) != 0 {
				t.Errorf("%s, %q: wrong checksum", c.dst, payload)
			}
			u, ok := ParseUDP(msg)
			if !ok || u.SrcPort != src.Port() || u.DstPort != dst.Port() || string(u.Payload) != payload {
				t.Errorf("%s, %q: ok %v, datagram %+v", c.dst, payload, ok, u)
			}
		}
	}
}

func TestUDPChecksumIsNeverZero(t *testing.T) {
	src, dst := netip.MustParseAddrPort("10.0.2.2:1"), netip.MustParseAddrPort("10.0.2.100:2")
	seen := false
	for i := range 0x10000 {
		b := AppendUDP(nil, src, dst, []byte{byte(i >> 8), byte(i)})
		u, _ := ParseUDP(b[IPv4HeaderLen:])
		if u.Checksum == 0 {
			t.Fatalf("payload %#x: checksum 0", i)
		}
		seen = seen || u.Checksum == 0xffff
	}
	if !seen {
		t.Error("no payload summed to zero")
	}
}

func TestParseUDPRefuses(t *testing.T) {
	for _, b := range [][]byte{
		nil,
		{0, 1, 0, 2, 0, 8, 0},
		{0, 1, 0, 2, 0, 7, 0, 0},
		{0, 1, 0, 2, 0, 9, 0, 0},
		{0, 1, 0, 2, 0xff, 0xff, 0, 0},
	} {
		if _, ok := ParseUDP(b); ok {
			t.Errorf("%x accepted", b)
		}
	}
	if u, ok := ParseUDP([]byte{0, 1, 0, 2, 0, 8, 0, 0, 0xee}); !ok || len(u.Payload) != 0 {
		t.Errorf("padding: ok %v, datagram %+v", ok, u)
	}
}
