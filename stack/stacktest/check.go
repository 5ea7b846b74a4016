package stacktest

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/postern-net/postern/proto/inet"
	"github.com/postern-net/postern/stack/tap"
)

// Packet is a frame taken apart, for checkers.
type Packet struct {
	WireFrame
	IP inet.Header
	// Transport is the transport header and payload, without padding.
	Transport []byte
	// Payload is what follows the transport header, once a transport checker ran.
	Payload []byte
}

// Check judges one property of a packet.
type Check func(tb testing.TB, p *Packet)

// IPv4 checks that a frame from the engine carries a well-formed IPv4 packet,
// and applies the checks. It returns the parts.
func IPv4(tb testing.TB, f WireFrame, checks ...Check) *Packet {
	tb.Helper()
	return ip(tb, f, 4, checks)
}

// IPv6 is IPv4's counterpart.
func IPv6(tb testing.TB, f WireFrame, checks ...Check) *Packet {
	tb.Helper()
	return ip(tb, f, 6, checks)
}

// IP is IPv4 or IPv6 by the family of an address.
func IP(tb testing.TB, family netip.Addr, f WireFrame, checks ...Check) *Packet {
	tb.Helper()
	if family.Is4() {
		return ip(tb, f, 4, checks)
	}
	return ip(tb, f, 6, checks)
}

func ip(tb testing.TB, f WireFrame, version byte, checks []Check) *Packet {
	tb.Helper()
	if len(f.Bytes) < 15 {
		tb.Fatalf("frame of %d bytes", len(f.Bytes))
	}
	if [6]byte(f.Bytes) != ContainerMAC || [6]byte(f.Bytes[6:]) != GatewayMAC {
		tb.Errorf("frame from % x to % x", f.Bytes[6:12], f.Bytes[:6])
	}
	want := map[byte]uint16{4: 0x0800, 6: 0x86dd}[version]
	b := f.Bytes[14:]
	if typ := binary.BigEndian.Uint16(f.Bytes[12:]); typ != want || b[0]>>4 != version {
		tb.Fatalf("frame of type %#04x, IP version %d, want version %d: % x", typ, b[0]>>4, version, b[:min(len(b), 60)])
	}
	h, ok := inet.Parse(b)
	if !ok || h.TotalLen != len(b) {
		tb.Fatalf("malformed IP packet, total length %d of %d bytes: % x", h.TotalLen, len(b), b[:min(len(b), 60)])
	}
	if version == 4 && !inet.IPv4HeaderOK(b, h.HeaderLen) {
		tb.Errorf("wrong IPv4 header checksum: % x", b[:h.HeaderLen])
	}
	p := &Packet{WireFrame: f, IP: h, Transport: h.Payload(b)}
	for _, c := range checks {
		c(tb, p)
	}
	return p
}

// Src checks the source address.
func Src(want netip.Addr) Check {
	return func(tb testing.TB, p *Packet) {
		tb.Helper()
		if p.IP.Src != want {
			tb.Errorf("source %v, want %v", p.IP.Src, want)
		}
	}
}

// Dst checks the destination address.
func Dst(want netip.Addr) Check {
	return func(tb testing.TB, p *Packet) {
		tb.Helper()
		if p.IP.Dst != want {
			tb.Errorf("destination %v, want %v", p.IP.Dst, want)
		}
	}
}

// Place checks where a fragment belongs, in bytes, and whether more follow.
func Place(offset int, more bool) Check {
	return func(tb testing.TB, p *Packet) {
		tb.Helper()
		if p.IP.FragOffset != offset || p.IP.MoreFragments != more {
			tb.Errorf("fragment at %d, more %v, want %d, %v", p.IP.FragOffset, p.IP.MoreFragments, offset, more)
		}
	}
}

// GSO checks that the frame is a super-segment of the kind whose pieces have the
// size, or none with tap.GSONone and 0.
func GSO(kind tap.GSO, segment int) Check {
	return func(tb testing.TB, p *Packet) {
		tb.Helper()
		if p.Header.GSO != kind || int(p.Header.Segment) != segment {
			tb.Errorf("super-segment of kind %d and size %d, want %d and %d", p.Header.GSO, p.Header.Segment, kind, segment)
		}
	}
}

// checksum verifies the transport checksum at offset as a kernel would: complete,
// or with the sum of the pseudo-header where the virtio header says so.
func checksum(tb testing.TB, p *Packet, offset int) {
	tb.Helper()
	sum := inet.PseudoSum(p.IP.Src, p.IP.Dst, p.IP.Proto, len(p.Transport))
	if p.IP.Proto == inet.ProtoICMP {
		sum = 0
	}
	if !p.Header.NeedsCsum {
		if inet.Checksum(p.Transport, sum) != 0 {
			tb.Errorf("wrong transport checksum: % x", p.Transport[:min(len(p.Transport), 40)])
		}
		return
	}
	if got := binary.BigEndian.Uint16(p.Transport[offset:]); got != inet.Fold(sum) {
		tb.Errorf("partial checksum %#04x, want that of the pseudo-header %#04x", got, inet.Fold(sum))
	}
	if int(p.Header.CsumStart) != 14+p.IP.HeaderLen || int(p.Header.CsumOffset) != offset {
		tb.Errorf("checksum to be made from %d at %d, want from %d at %d", p.Header.CsumStart, p.Header.CsumOffset, 14+p.IP.HeaderLen, offset)
	}
}
