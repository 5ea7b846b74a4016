package inet

import (
	"encoding/binary"
	"net/netip"
)

// IPv6 extension headers that the parser walks (RFC 8200 section 4). Others,
// AH and ESP among them, end the walk as the packet's protocol.
const (
	extHopByHop    = 0
	extRouting     = 43
	extFragment    = 44
	extDestination = 60
)

// maxExtensions is how many extension headers are walked. RFC 8200 section 4.1
// foresees six of the walked kinds in one packet; longer chains exist only in
// attacks, and passt has the same kind of limit.
const maxExtensions = 8

// parseIPv6 reads an IPv6 header and walks the hop-by-hop, routing, fragment and
// destination options headers; too long a chain is not ok. Neither is a
// jumbogram (payload length 0 and an option, RFC 2675): no link here carries one.
// When the packet may be cut, its total length is clipped to b.
func parseIPv6(b []byte, cut bool) (h Header, ok bool) {
	if len(b) < IPv6HeaderLen || b[0]>>4 != 6 {
		return Header{}, false
	}
	total := IPv6HeaderLen + int(binary.BigEndian.Uint16(b[4:]))
	if cut {
		total = min(total, len(b))
	}
	if total > len(b) {
		return Header{}, false
	}
	h = Header{
		Src:          netip.AddrFrom16([16]byte(b[8:24])),
		Dst:          netip.AddrFrom16([16]byte(b[24:40])),
		Proto:        b[6],
		TTL:          b[7],
		TOS:          b[0]<<4 | b[1]>>4,
		HeaderLen:    IPv6HeaderLen,
		TotalLen:     total,
		DontFragment: true,
	}
	// A v4-mapped address never stands on the wire, and netip would treat it
	// differently from the IPv4 address that it names (RFC 4038 section 4.2).
	if h.Src.Is4In6() || h.Dst.Is4In6() {
		return Header{}, false
	}
	if !h.walkExtensions(b[:total]) {
		return Header{}, false
	}
	return h, true
}

// walkExtensions moves HeaderLen and Proto past the extension headers. The
// packet must not have padding.
func (h *Header) walkExtensions(packet []byte) bool {
	for range maxExtensions {
		switch h.Proto {
		case extHopByHop, extRouting, extDestination, extFragment:
		default:
			return true
		}
		rest := packet[h.HeaderLen:]
		if len(rest) < 8 {
			return false
		}
		length := 8
		if h.Proto == extFragment {
			field := binary.BigEndian.Uint16(rest[2:])
			h.FragOffset, h.MoreFragments = int(field&^7), field&1 != 0
			h.ID = binary.BigEndian.Uint32(rest[4:])
		} else {
			length += int(rest[1]) * 8
		}
		if len(rest) < length {
			return false
		}
		h.Proto = rest[0]
		h.HeaderLen += length
		if h.FragOffset != 0 {
			return true // what follows is the middle of something
		}
	}
	return false
}

func appendIPv6(b []byte, h Header, payloadLen int) []byte {
	src, dst := h.Src.As16(), h.Dst.As16()
	b = append(b, 0x60|h.TOS>>4, h.TOS<<4, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(payloadLen))
	b = append(b, h.Proto, h.TTL)
	b = append(b, src[:]...)
	return append(b, dst[:]...)
}
