package inet

import (
	"encoding/binary"
	"net/netip"
)

// Protocol numbers (IANA, assigned Internet protocol numbers).
const (
	ProtoICMP   = 1
	ProtoIGMP   = 2
	ProtoTCP    = 6
	ProtoUDP    = 17
	ProtoICMPv6 = 58
)

// Header lengths in bytes, without options and extension headers.
const (
	IPv4HeaderLen = 20
	IPv6HeaderLen = 40
	UDPHeaderLen  = 8
)

// DefaultTTL is the hop limit of packets that the engine makes (RFC 1700).
const DefaultTTL = 64

// Header is what one needs to know of an IP header of either family. The family
// is that of Src and Dst, which are never v4-mapped.
type Header struct {
	Src, Dst netip.Addr
	// Proto is the transport protocol; for IPv6 the one after the extension
	// headers that the parser walks.
	Proto uint8
	// TTL is the time to live or hop limit.
	TTL uint8
	// TOS is the type of service or traffic class (DSCP and ECN).
	TOS uint8
	// HeaderLen is where the transport header starts; options and extension
	// headers are included. Builders ignore it.
	HeaderLen int
	// TotalLen is where the packet ends; later bytes are padding. Builders ignore it.
	TotalLen int
	// ID is the identification of a fragmented packet, 16 bits for IPv4.
	ID uint32
	// FragOffset is the fragment's place in bytes; MoreFragments says that it is
	// not the last one. Both are zero in a packet that is not fragmented.
	FragOffset    int
	MoreFragments bool
	// DontFragment is IPv4's DF bit; always true for IPv6.
	DontFragment bool
}

// Fragment reports whether the packet is a piece of a larger one.
func (h Header) Fragment() bool { return h.FragOffset != 0 || h.MoreFragments }

// Payload returns the transport header and payload of the packet that h was
// parsed from, without padding.
func (h Header) Payload(packet []byte) []byte { return packet[h.HeaderLen:h.TotalLen] }

// Parse reads the IP header at the start of b by its version field. It is not
// ok when a length contradicts another one or reaches beyond b. See the package
// comment for what is not verified, and ipv6.go for extension headers.
func Parse(b []byte) (h Header, ok bool) { return parse(b, false) }

// ParseQuote is Parse for a packet that may have been cut off after its headers,
// such as the one that an ICMP error quotes: TotalLen is at most len(b).
func ParseQuote(b []byte) (h Header, ok bool) { return parse(b, true) }

// ParseIPv4 is Parse for IPv4 alone.
func ParseIPv4(b []byte) (h Header, ok bool) { return parseIPv4(b, false) }

// ParseIPv6 is Parse for IPv6 alone.
func ParseIPv6(b []byte) (h Header, ok bool) { return parseIPv6(b, false) }

func parse(b []byte, cut bool) (h Header, ok bool) {
	if len(b) == 0 {
		return Header{}, false
	}
	switch b[0] >> 4 {
	case 4:
		return parseIPv4(b, cut)
	case 6:
		return parseIPv6(b, cut)
	}
	return Header{}, false
}

// parseIPv4 clips the total length to b when the packet may be cut.
func parseIPv4(b []byte, cut bool) (h Header, ok bool) {
	if len(b) < IPv4HeaderLen || b[0]>>4 != 4 {
		return Header{}, false
	}
	header, total := int(b[0]&0x0f)*4, int(binary.BigEndian.Uint16(b[2:]))
	if cut && total >= header {
		total = min(total, len(b))
	}
	if header < IPv4HeaderLen || total < header || total > len(b) {
		return Header{}, false
	}
	frag := binary.BigEndian.Uint16(b[6:])
	return Header{
		Src:           netip.AddrFrom4([4]byte(b[12:16])),
		Dst:           netip.AddrFrom4([4]byte(b[16:20])),
		Proto:         b[9],
		TTL:           b[8],
		TOS:           b[1],
		HeaderLen:     header,
		TotalLen:      total,
		ID:            uint32(binary.BigEndian.Uint16(b[4:])),
		FragOffset:    int(frag&0x1fff) * 8,
		MoreFragments: frag&0x2000 != 0,
		DontFragment:  frag&0x4000 != 0,
	}, true
}

// IPv4HeaderOK reports whether the header checksum of an IPv4 packet is right.
// header is Header.HeaderLen of a successful parse of b.
func IPv4HeaderOK(b []byte, header int) bool { return Checksum(b[:header], 0) == 0 }

// AppendIP appends the header of a packet with payloadLen bytes after the
// header: 20 bytes of IPv4 or 40 of IPv6 by the family of h.Dst. It writes Src,
// Dst, Proto, TTL (0 means DefaultTTL), TOS and, for IPv4, ID and DontFragment.
// The caller keeps payloadLen within 65,515 (IPv4) and 65,535 (IPv6).
func AppendIP(b []byte, h Header, payloadLen int) []byte {
	if h.TTL == 0 {
		h.TTL = DefaultTTL
	}
	if h.Dst.Is4() {
		return appendIPv4(b, h, payloadLen)
	}
	return appendIPv6(b, h, payloadLen)
}

func appendIPv4(b []byte, h Header, payloadLen int) []byte {
	start := len(b)
	var flags uint16
	if h.DontFragment {
		flags = 0x4000
	}
	src, dst := h.Src.As4(), h.Dst.As4()
	b = append(b, 0x45, h.TOS)
	b = binary.BigEndian.AppendUint16(b, uint16(IPv4HeaderLen+payloadLen))
	b = binary.BigEndian.AppendUint16(b, uint16(h.ID))
	b = binary.BigEndian.AppendUint16(b, flags)
	b = append(b, h.TTL, h.Proto, 0, 0)
	b = append(b, src[:]...)
	b = append(b, dst[:]...)
	binary.BigEndian.PutUint16(b[start+10:], Checksum(b[start:], 0))
	return b
}

// LimitedBroadcast is 255.255.255.255, every host on the link (RFC 919).
var LimitedBroadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// Broadcast returns the broadcast address of an IPv4 network, its last one (RFC
// 919). The prefix must be valid and of IPv4.
func Broadcast(p netip.Prefix) netip.Addr {
	b := p.Addr().As4()
	n := binary.BigEndian.Uint32(b[:]) | uint32(uint64(1)<<(32-p.Bits())-1)
	binary.BigEndian.PutUint32(b[:], n)
	return netip.AddrFrom4(b)
}
