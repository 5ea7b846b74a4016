package link

import (
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/postern-net/postern/proto/inet"
)

// Flatten turns a packet that netstack reassembled into one with a plain IP
// header. Its transport checksum is verified, which nobody could before. ok is
// false for a packet that does not fit an IP header, or is damaged.
func Flatten(pkt *stack.PacketBuffer) (p Packet, ok bool) {
	h := inet.Header{Proto: uint8(pkt.TransportProtocolNumber)}
	switch ip := pkt.NetworkHeader().Slice(); pkt.NetworkProtocolNumber {
	case header.IPv4ProtocolNumber:
		v4 := header.IPv4(ip)
		h.Src, h.Dst = netip.AddrFrom4(v4.SourceAddress().As4()), netip.AddrFrom4(v4.DestinationAddress().As4())
		h.TTL = v4.TTL()
	case header.IPv6ProtocolNumber:
		v6 := header.IPv6(ip)
		h.Src, h.Dst = netip.AddrFrom16(v6.SourceAddress().As16()), netip.AddrFrom16(v6.DestinationAddress().As16())
		h.TTL = v6.HopLimit()
	default:
		return Packet{}, false
	}
	transport, data := pkt.TransportHeader().Slice(), pkt.Data().AsRange().ToSlice()
	length := len(transport) + len(data)
	if length > maxPayload(h.Dst) {
		return Packet{}, false
	}
	b := inet.AppendIP(make([]byte, 0, inet.IPv6HeaderLen+length), h, length)
	b = append(append(b, transport...), data...)
	parsed, ok := inet.Parse(b)
	p = Packet{Header: parsed, Bytes: b}
	return p, ok && transportSumOK(p)
}
