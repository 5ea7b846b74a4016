package icmp

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"testing"

	"github.com/postern-net/postern/proto/inet"
)

var (
	container4 = netip.MustParseAddr("10.0.2.100")
	gateway4   = netip.MustParseAddr("10.0.2.2")
	outside4   = netip.MustParseAddr("192.0.2.1")
	container6 = netip.MustParseAddr("fd00::100")
	gateway6   = netip.MustParseAddr("fd00::2")
	outside6   = netip.MustParseAddr("2001:db8::1")
)

func TestEchoGolden(t *testing.T) {
	// The message that `ping -c1 -s 4 -p 01020304` sends with identifier 0x1234,
	// and its answer, summed by hand.
	msg, _ := hex.DecodeString("0800" + "0000" + "1234" + "0001" + "01020304")
	binary.BigEndian.PutUint16(msg[2:], ^uint16(0x0800+0x1234+0x0001+0x0102+0x0304))
	e, ok := ParseEcho(false, msg)
	if !ok || e.Reply || e.ID != 0x1234 || e.Seq != 1 || !bytes.Equal(e.Payload, []byte{1, 2, 3, 4}) {
		t.Fatalf("ok %v, echo %+v", ok, e)
	}
	if !ChecksumOK(container4, gateway4, msg) {
		t.Error("right checksum refused")
	}
	msg[9] ^= 1
	if ChecksumOK(container4, gateway4, msg) {
		t.Error("wrong checksum accepted")
	}
}

func TestEchoRoundTrip(t *testing.T) {
	for _, c := range []struct{ from, to netip.Addr }{{gateway4, container4}, {gateway6, container6}} {
		for _, reply := range []bool{false, true} {
			want := Echo{Reply: reply, ID: 0xfffe, Seq: 7, Payload: []byte("payload")}
			b := AppendEcho([]byte{0}, want, c.from, c.to)[1:]
			h, ok := inet.Parse(b)
			if !ok || h.Src != c.from || h.Dst != c.to || h.TotalLen != len(b) {
				t.Fatalf("%v: ok %v, header %+v", c.to, ok, h)
			}
			msg := h.Payload(b)
			got, ok := ParseEcho(!c.to.Is4(), msg)
			if !ok || got.Reply != reply || got.ID != want.ID || got.Seq != want.Seq || !bytes.Equal(got.Payload, want.Payload) {
				t.Errorf("%v: ok %v, echo %+v", c.to, ok, got)
			}
			if !ChecksumOK(h.Src, h.Dst, msg) {
				t.Errorf("%v: wrong checksum", c.to)
			}
			if _, ok := ParseEcho(c.to.Is4(), msg); ok {
				t.Errorf("%v: accepted as the other family's", c.to)
			}
		}
	}
}

func TestParseEchoRefuses(t *testing.T) {
	for _, b := range [][]byte{nil, {8}, {8, 0, 0, 0, 0, 0, 0}, {8, 1, 0, 0, 0, 0, 0, 0}, {3, 0, 0, 0, 0, 0, 0, 0}, {128, 0, 0, 0, 0, 0, 0, 0}} {
		if _, ok := ParseEcho(false, b); ok {
			t.Errorf("%x accepted", b)
		}
	}
}

func datagram(from, to netip.Addr, n int) []byte {
	return inet.AppendUDP(nil, netip.AddrPortFrom(from, 1000), netip.AddrPortFrom(to, 2000), bytes.Repeat([]byte{0xaa}, n))
}

func TestBuildError(t *testing.T) {
	quote4, quote6 := datagram(container4, outside4, 10), datagram(container6, outside6, 10)
	for _, c := range []struct {
		kind   Kind
		mtu    uint32
		v4, v6 string // type, code, second word
	}{
		{NetUnreachable, 9, "0300 00000000", "0100 00000000"},
		{HostUnreachable, 9, "0301 00000000", "0103 00000000"},
		{PortUnreachable, 9, "0303 00000000", "0104 00000000"},
		{AdminProhibited, 9, "030d 00000000", "0101 00000000"},
		{FragmentationNeeded, 70000, "0304 0000ffff", "0200 00011170"},
		{FragmentationNeeded, 1400, "0304 00000578", "0200 00000578"},
		{TimeExceeded, 9, "0b00 00000000", "0300 00000000"},
	} {
		check(t, c.v4, BuildError(c.kind, c.mtu, gateway4, container4, quote4), gateway4, container4, quote4)
		check(t, c.v6, BuildError(c.kind, c.mtu, gateway6, container6, quote6), gateway6, container6, quote6)
	}
}

// check parses an error packet back and compares its message with the head in hex.
func check(t *testing.T, head string, b []byte, from, to netip.Addr, quote []byte) {
	t.Helper()
	h, ok := inet.Parse(b)
	if !ok || h.Src != from || h.Dst != to || h.TotalLen != len(b) || h.Proto != protocol(to) {
		t.Errorf("%s: ok %v, header %+v", head, ok, h)
		return
	}
	msg := h.Payload(b)
	if got := hex.EncodeToString(msg[:2]) + " " + hex.EncodeToString(msg[4:8]); got != head {
		t.Errorf("head %s, want %s", got, head)
	}
	if !ChecksumOK(h.Src, h.Dst, msg) {
		t.Errorf("%s: wrong checksum", head)
	}
	if !bytes.Equal(msg[8:], quote) {
		t.Errorf("%s: quoted %x, want %x", head, msg[8:], quote)
	}
	if k, ok := KindOf(!to.Is4(), msg[0], msg[1]); !ok || k.String() == "none" {
		t.Errorf("%s: KindOf gives %v %v", head, k, ok)
	}
}

func TestBuildErrorQuotesWithinBounds(t *testing.T) {
	for n := range 1500 {
		q := datagram(container4, outside4, n)
		b := BuildError(PortUnreachable, 0, gateway4, container4, append(q, 0xee, 0xee, 0xee))
		if want := min(28+len(q), 576); len(b) != want || bytes.Contains(b, []byte{0xee, 0xee}) {
			t.Fatalf("IPv4 quote of %d bytes: error of %d bytes, want %d", len(q), len(b), want)
		}
		q = datagram(container6, outside6, n)
		b = BuildError(PortUnreachable, 0, gateway6, container6, append(q, 0xee, 0xee, 0xee))
		if want := min(48+len(q), 1280); len(b) != want || bytes.Contains(b, []byte{0xee, 0xee}) {
			t.Fatalf("IPv6 quote of %d bytes: error of %d bytes, want %d", len(q), len(b), want)
		}
	}
	cut := datagram(container4, outside4, 1000)[:28]
	check(t, "0303 00000000", BuildError(PortUnreachable, 0, gateway4, container4, cut), gateway4, container4, cut)
}

func TestMayAnswer(t *testing.T) {
	later := datagram(container4, outside4, 8)
	later[7] = 1
	icmp4 := func(typ byte) []byte {
		b := AppendEcho(nil, Echo{}, container4, outside4)
		b[20] = typ
		return b
	}
	icmp6 := func(typ byte) []byte {
		b := AppendEcho(nil, Echo{}, container6, outside6)
		b[40] = typ
		return b
	}
	parse := netip.MustParseAddr
	for _, c := range []struct {
		name   string
		packet []byte
		want   bool
	}{
		{"udp", datagram(container4, outside4, 8), true},
		{"udp over IPv6", datagram(container6, outside6, 8), true},
		{"echo", icmp4(8), true},
		{"timestamp", icmp4(13), true},
		{"echo over IPv6", icmp6(128), true},
		{"nothing", nil, false},
		{"cut header", datagram(container4, outside4, 8)[:19], false},
		{"later fragment", later, false},
		{"unreachable", icmp4(3), false},
		{"source quench", icmp4(4), false},
		{"redirect", icmp4(5), false},
		{"time exceeded", icmp4(11), false},
		{"ICMP without a type", icmp4(8)[:20], false},
		{"unreachable over IPv6", icmp6(1), false},
		{"unknown error over IPv6", icmp6(127), false},
		{"redirect over IPv6", icmp6(137), false},
		{"to multicast", datagram(container4, parse("224.0.0.1"), 8), false},
		{"to broadcast", datagram(container4, parse("255.255.255.255"), 8), false},
		{"from nobody", datagram(parse("0.0.0.0"), outside4, 8), false},
		{"from multicast", datagram(parse("224.0.0.1"), outside4, 8), false},
		{"to IPv6 multicast", datagram(container6, parse("ff02::1"), 8), false},
		{"from nobody over IPv6", datagram(parse("::"), outside6, 8), false},
	} {
		if got := MayAnswer(c.packet); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
		h, _ := inet.ParseQuote(c.packet)
		from := gateway4
		if h.Src.Is6() {
			from = gateway6
		}
		if h.Src.IsValid() {
			if b := BuildError(HostUnreachable, 0, from, h.Src, c.packet); (b != nil) != c.want {
				t.Errorf("%s: BuildError gives %x", c.name, b)
			}
		}
	}
}

func TestBuildErrorRefusesAMixOfFamiliesAndNoKind(t *testing.T) {
	q := datagram(container4, outside4, 8)
	for name, b := range map[string][]byte{
		"IPv6 sender":   BuildError(HostUnreachable, 0, gateway6, container4, q),
		"IPv6 receiver": BuildError(HostUnreachable, 0, gateway6, container6, q),
		"no kind":       BuildError(0, 0, gateway4, container4, q),
		"unknown kind":  BuildError(99, 0, gateway4, container4, q),
	} {
		if b != nil {
			t.Errorf("%s: built %x", name, b)
		}
	}
	if Kind(0).String() != "none" || Kind(99).String() != "none" {
		t.Error("a name for no kind")
	}
}

func TestKindOf(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		for k := NetUnreachable; k <= TimeExceeded; k++ {
			typ, code := k.Wire(v6)
			if got, ok := KindOf(v6, typ, code); !ok || got != k {
				t.Errorf("v6 %v, %v: KindOf gives %v %v", v6, k, got, ok)
			}
		}
	}
	for _, c := range []struct {
		v6        bool
		typ, code uint8
		want      Kind
		ok        bool
	}{
		{false, 3, 2, PortUnreachable, true},
		{false, 3, 6, NetUnreachable, true},
		{false, 3, 7, HostUnreachable, true},
		{false, 3, 9, AdminProhibited, true},
		{false, 3, 255, HostUnreachable, true},
		{false, 5, 0, 0, false},
		{false, 8, 0, 0, false},
		{true, 1, 2, HostUnreachable, true},
		{true, 1, 6, AdminProhibited, true},
		{true, 4, 1, 0, false},
		{true, 128, 0, 0, false},
	} {
		if got, ok := KindOf(c.v6, c.typ, c.code); ok != c.ok || ok && got != c.want {
			t.Errorf("v6 %v, %d/%d: %v %v, want %v %v", c.v6, c.typ, c.code, got, ok, c.want, c.ok)
		}
	}
	if _, ok := KindOf(false, 11, 1); ok {
		t.Error("reassembly time exceeded was taken for a hop limit")
	}
}

func FuzzParseEcho(f *testing.F) {
	f.Add(AppendEcho(nil, Echo{ID: 1}, container4, gateway4)[20:])
	f.Add(AppendEcho(nil, Echo{Reply: true, Payload: []byte("x")}, container6, gateway6)[40:])
	f.Fuzz(func(t *testing.T, msg []byte) {
		for _, v6 := range []bool{false, true} {
			e, ok := ParseEcho(v6, msg)
			if !ok {
				continue
			}
			from, to := gateway4, container4
			if v6 {
				from, to = gateway6, container6
			}
			if len(msg) > 65000 {
				continue
			}
			b := AppendEcho(nil, e, from, to)
			h, ok := inet.Parse(b)
			if !ok || !bytes.Equal(h.Payload(b)[4:], msg[4:]) {
				t.Errorf("%x became %x", msg, b)
			}
		}
	})
}

func FuzzBuildError(f *testing.F) {
	f.Add(uint8(1), datagram(container4, outside4, 9))
	f.Add(uint8(5), datagram(container6, outside6, 9))
	f.Fuzz(func(t *testing.T, kind uint8, quote []byte) {
		h, ok := inet.ParseQuote(quote)
		if !ok {
			if MayAnswer(quote) {
				t.Error("a malformed packet may be answered")
			}
			return
		}
		from := gateway4
		if h.Src.Is6() {
			from = gateway6
		}
		b := BuildError(Kind(kind), 1500, from, h.Src, quote)
		if b == nil {
			return
		}
		e, ok := inet.Parse(b)
		if !ok || !ChecksumOK(e.Src, e.Dst, e.Payload(b)) {
			t.Fatalf("malformed error %x", b)
		}
		if got := e.Payload(b)[8:]; !bytes.HasPrefix(quote, got) {
			t.Errorf("quoted %x of %x", got, quote)
		}
	})
}
