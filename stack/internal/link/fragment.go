package link

import (
	"encoding/binary"
	"math/rand/v2"

	"github.com/postern-net/postern/proto/inet"
)

// fragments sends a packet that is larger than the MTU in pieces (RFC 791
// section 3.2, RFC 8200 section 4.5). The engine is a router to the container
// and an IPv6 router must not fragment, but these packets are made here: it is
// their source.
func (e *Endpoint) fragments(h inet.Header, packet []byte, mtu int) {
	id := rand.Uint32()
	if h.Src.Is4() {
		for _, f := range fragment4(packet, h, mtu, uint16(id)) {
			e.sendIP(h.Dst, f.header, f.payload)
		}
		return
	}
	for _, f := range fragment6(packet, h, mtu, id) {
		e.sendIP(h.Dst, f.header, f.payload)
	}
}

// fragment is a piece of a packet; payload aliases the packet.
type fragment struct{ header, payload []byte }

// fragment4 cuts an IPv4 packet. It returns nothing when the MTU leaves no room
// for 8 bytes of payload.
func fragment4(packet []byte, h inet.Header, mtu int, id uint16) []fragment {
	room := (mtu - h.HeaderLen) &^ 7
	if room <= 0 {
		return nil
	}
	payload := h.Payload(packet)
	var out []fragment
	for at := 0; at < len(payload); at += room {
		n := min(room, len(payload)-at)
		hdr := append([]byte(nil), packet[:h.HeaderLen]...)
		field := uint16(at / 8)
		if at+n < len(payload) {
			field |= 0x2000 // more fragments
		}
		binary.BigEndian.PutUint16(hdr[2:], uint16(h.HeaderLen+n))
		binary.BigEndian.PutUint16(hdr[4:], id)
		binary.BigEndian.PutUint16(hdr[6:], field)
		hdr[10], hdr[11] = 0, 0
		binary.BigEndian.PutUint16(hdr[10:], inet.Checksum(hdr, 0))
		out = append(out, fragment{hdr, payload[at : at+n]})
	}
	return out
}

// fragment6 cuts an IPv6 packet without extension headers, which is all that
// the engine makes, with a fragment header of 8 bytes in each piece.
func fragment6(packet []byte, h inet.Header, mtu int, id uint32) []fragment {
	const extension, next = 8, 44
	room := (mtu - inet.IPv6HeaderLen - extension) &^ 7
	if room <= 0 || h.HeaderLen != inet.IPv6HeaderLen {
		return nil
	}
	payload := h.Payload(packet)
	var out []fragment
	for at := 0; at < len(payload); at += room {
		n := min(room, len(payload)-at)
		hdr := append([]byte(nil), packet[:inet.IPv6HeaderLen]...)
		binary.BigEndian.PutUint16(hdr[4:], uint16(extension+n))
		hdr[6] = next
		field := uint16(at)
		if at+n < len(payload) {
			field |= 1 // more fragments
		}
		hdr = append(hdr, h.Proto, 0)
		hdr = binary.BigEndian.AppendUint16(hdr, field)
		hdr = binary.BigEndian.AppendUint32(hdr, id)
		out = append(out, fragment{hdr, payload[at : at+n]})
	}
	return out
}
