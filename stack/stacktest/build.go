package stacktest

import (
	"encoding/binary"
	"net/netip"

	"github.com/postern-net/postern/proto/icmp"
	"github.com/postern-net/postern/proto/inet"
	"github.com/postern-net/postern/stack/tap"
)

// Control flags of a TCP header (RFC 9293 section 3.1).
const (
	FIN = 1 << iota
	SYN
	RST
	PSH
	ACK
	URG
)

// Segment is a TCP segment to build.
type Segment struct {
	Src, Dst netip.AddrPort
	Seq, Ack uint32
	Flags    uint8
	// Window is as in the header, unscaled; 0 means 65,535.
	Window uint16
	// ZeroWindow overrides Window with a closed one.
	ZeroWindow bool
	Urgent     uint16
	// Options must be a multiple of 4 bytes, at most 40.
	Options []byte
	Payload []byte
}

// MSS is the option with which a SYN announces its segment size (RFC 9293 3.7.1).
func MSS(n uint16) []byte { return []byte{2, 4, byte(n >> 8), byte(n)} }

// Packet returns the whole IP packet with right checksums.
func (s Segment) Packet() []byte {
	length := 20 + len(s.Options) + len(s.Payload)
	b := inet.AppendIP(nil, inet.Header{Src: s.Src.Addr(), Dst: s.Dst.Addr(), Proto: inet.ProtoTCP, DontFragment: true}, length)
	start := len(b)
	b = binary.BigEndian.AppendUint16(b, s.Src.Port())
	b = binary.BigEndian.AppendUint16(b, s.Dst.Port())
	b = binary.BigEndian.AppendUint32(b, s.Seq)
	b = binary.BigEndian.AppendUint32(b, s.Ack)
	b = append(b, byte(20+len(s.Options))<<2, s.Flags)
	window := s.Window
	switch {
	case s.ZeroWindow:
		window = 0
	case window == 0:
		window = 65535
	}
	b = binary.BigEndian.AppendUint16(b, window)
	b = append(b, 0, 0)
	b = binary.BigEndian.AppendUint16(b, s.Urgent)
	b = append(append(b, s.Options...), s.Payload...)
	sum := inet.Checksum(b[start:], inet.PseudoSum(s.Src.Addr(), s.Dst.Addr(), inet.ProtoTCP, length))
	binary.BigEndian.PutUint16(b[start+16:], sum)
	return b
}

// Datagram returns a whole IP packet with one UDP datagram and right checksums.
func Datagram(src, dst netip.AddrPort, payload []byte) []byte {
	return inet.AppendUDP(nil, src, dst, payload)
}

// EchoRequest returns a whole IP packet with an ICMP echo request.
func EchoRequest(src, dst netip.Addr, id, seq uint16, payload []byte) []byte {
	return icmp.AppendEcho(nil, icmp.Echo{ID: id, Seq: seq, Payload: payload}, src, dst)
}

// Frame puts the Ethernet header of a frame from the container to the gateway
// before an IP packet of either family.
func Frame(packet []byte) []byte {
	typ := uint16(0x0800)
	if len(packet) > 0 && packet[0]>>4 == 6 {
		typ = 0x86dd
	}
	return Ethernet(GatewayMAC, ContainerMAC, typ, packet)
}

// Ethernet returns a frame.
func Ethernet(dst, src [6]byte, typ uint16, payload []byte) []byte {
	b := append(append([]byte(nil), dst[:]...), src[:]...)
	return append(binary.BigEndian.AppendUint16(b, typ), payload...)
}

// Pad lengthens a frame to n bytes with what is no part of its packet.
func Pad(frame []byte, n int) []byte {
	b := append([]byte(nil), frame...)
	for len(b) < n {
		b = append(b, 0xa5)
	}
	return b
}

// Partial turns the checksum of a TCP or UDP packet into that of a frame whose
// sender leaves it to the device: the pseudo-header's sum. It returns the virtio
// header that says so.
func Partial(packet []byte) tap.Header {
	h, ok := inet.Parse(packet)
	if !ok {
		panic("stacktest: Partial of a malformed packet")
	}
	offset := 16
	if h.Proto == inet.ProtoUDP {
		offset = 6
	}
	length := h.TotalLen - h.HeaderLen
	binary.BigEndian.PutUint16(packet[h.HeaderLen+offset:], inet.Fold(inet.PseudoSum(h.Src, h.Dst, h.Proto, length)))
	return tap.Header{NeedsCsum: true, CsumStart: uint16(14 + h.HeaderLen), CsumOffset: uint16(offset)}
}

// Fragments cuts a packet without options or extension headers into pieces for
// an MTU, as RFC 791 section 3.2 and RFC 8200 section 4.5 say.
func Fragments(packet []byte, mtu int, id uint32) [][]byte {
	h, ok := inet.Parse(packet)
	if !ok {
		panic("stacktest: Fragments of a malformed packet")
	}
	payload := h.Payload(packet)
	room := (mtu - h.HeaderLen) &^ 7
	if !h.Src.Is4() {
		room = (mtu - h.HeaderLen - 8) &^ 7
	}
	var list [][]byte
	for at := 0; at < len(payload); at += room {
		end := min(at+room, len(payload))
		list = append(list, Fragment(h, payload[at:end], at, end < len(payload), id))
	}
	return list
}

// Fragment returns one piece of a packet, of which h gives addresses and
// protocol. at is its place in bytes and should be a multiple of 8.
func Fragment(h inet.Header, payload []byte, at int, more bool, id uint32) []byte {
	if h.Src.Is4() {
		b := inet.AppendIP(nil, inet.Header{Src: h.Src, Dst: h.Dst, Proto: h.Proto, ID: id}, len(payload))
		field := uint16(at / 8)
		if more {
			field |= 0x2000
		}
		binary.BigEndian.PutUint16(b[6:], field)
		binary.BigEndian.PutUint16(b[10:], 0)
		binary.BigEndian.PutUint16(b[10:], inet.Checksum(b[:20], 0))
		return append(b, payload...)
	}
	const extension = 44
	b := inet.AppendIP(nil, inet.Header{Src: h.Src, Dst: h.Dst, Proto: extension}, 8+len(payload))
	field := uint16(at)
	if more {
		field |= 1
	}
	b = binary.BigEndian.AppendUint16(append(b, h.Proto, 0), field)
	return append(binary.BigEndian.AppendUint32(b, id), payload...)
}
