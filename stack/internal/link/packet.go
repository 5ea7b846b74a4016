package link

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/postern-net/postern/proto/icmp"
	"github.com/postern-net/postern/proto/inet"
	"github.com/postern-net/postern/stack/internal/flow"
	"github.com/postern-net/postern/stack/tap"
)

// SendUDP sends payload to the container, from and to being of one family. With
// a segment size, payload is several datagrams of that size, the last perhaps
// shorter. What does not fit the MTU is sent in fragments.
func (e *Endpoint) SendUDP(from, to netip.AddrPort, payload []byte, segment int) {
	room := int(e.MTU()) - ipHeaderLen(to.Addr()) - inet.UDPHeaderLen
	if segment > 0 && len(payload) > segment {
		e.sendBatch(from, to, payload, segment, room)
		return
	}
	if len(payload) > room {
		if len(payload) <= maxPayload(to.Addr())-inet.UDPHeaderLen {
			e.SendIP(inet.AppendUDP(nil, from, to, payload))
		}
		return
	}
	_ = e.sendDatagram(from, to, payload, tap.Header{})
}

// sendBatch sends several datagrams, in super-segments if they fit room and the
// device knows any. A batch may be larger than one packet can be: what one family
// received the other may not be able to carry.
func (e *Endpoint) sendBatch(from, to netip.AddrPort, payload []byte, segment, room int) {
	most := (maxPayload(to.Addr()) - inet.UDPHeaderLen) / segment * segment
	for len(payload) > segment && segment <= room && segment < most && e.cfg.Device.Offloads().USO {
		n := min(len(payload), most)
		if !e.sendSegments(from, to, payload[:n], segment) {
			break
		}
		payload = payload[n:]
	}
	for len(payload) > 0 {
		n := min(segment, len(payload))
		e.SendUDP(from, to, payload[:n], 0)
		payload = payload[n:]
	}
}

// sendSegments sends a UDP super-segment. It reports false when the device
// turned out to know none; the device remembers. Any other failure, such as an
// interface that is down, loses the datagrams like on any wire.
func (e *Endpoint) sendSegments(from, to netip.AddrPort, payload []byte, segment int) bool {
	err := e.sendDatagram(from, to, payload, tap.Header{GSO: tap.GSOUDP, Segment: uint16(segment)})
	if !errors.Is(err, unix.EINVAL) {
		return true
	}
	e.cfg.Device.DisableUSO()
	return false
}

func ipHeaderLen(a netip.Addr) int {
	if a.Is4() {
		return inet.IPv4HeaderLen
	}
	return inet.IPv6HeaderLen
}

// maxPayload is how many bytes may follow the IP header: the length field of
// IPv4 counts the header too (RFC 791 section 3.1, RFC 8200 section 3).
func maxPayload(a netip.Addr) int {
	if a.Is4() {
		return 65535 - inet.IPv4HeaderLen
	}
	return 65535
}

// sendDatagram writes one frame with a UDP header in front of payload.
func (e *Endpoint) sendDatagram(from, to netip.AddrPort, payload []byte, vnet tap.Header) error {
	v := vectors.Get().(*vector)
	defer v.free()
	length := inet.UDPHeaderLen + len(payload)
	b := v.hdr[:tap.HeaderLen]
	b = e.appendEthernet(b, to.Addr())
	b = inet.AppendIP(b, inet.Header{Src: from.Addr(), Dst: to.Addr(), Proto: inet.ProtoUDP}, length)
	transport := len(b)
	b = binary.BigEndian.AppendUint16(b, from.Port())
	b = binary.BigEndian.AppendUint16(b, to.Port())
	b = binary.BigEndian.AppendUint16(b, uint16(length))
	b = append(b, 0, 0)
	sum := inet.PseudoSum(from.Addr(), to.Addr(), inet.ProtoUDP, length)
	if e.cfg.Device.Offloads().Csum {
		vnet.NeedsCsum = true
		vnet.CsumStart, vnet.CsumOffset = uint16(transport-tap.HeaderLen), 6
		binary.BigEndian.PutUint16(b[transport+6:], inet.Fold(sum))
	} else {
		sum = inet.Sum(payload, inet.Sum(b[transport:], sum))
		full := ^inet.Fold(sum)
		if full == 0 {
			full = 0xffff // zero would say that there is none (RFC 768)
		}
		binary.BigEndian.PutUint16(b[transport+6:], full)
	}
	vnet.HdrLen = uint16(len(b) - tap.HeaderLen)
	vnet.Put(b[:tap.HeaderLen])
	v.add(b)
	v.add(payload)
	return e.write(v)
}

func (e *Endpoint) appendEthernet(b []byte, to netip.Addr) []byte {
	far, known := e.far.address()
	if !known {
		e.ask(to)
	}
	b = append(b, far[:]...)
	b = append(b, e.cfg.GatewayMAC...)
	proto := header.IPv4ProtocolNumber
	if !to.Is4() {
		proto = header.IPv6ProtocolNumber
	}
	return binary.BigEndian.AppendUint16(b, uint16(proto))
}

// SendIP sends a whole IP packet with right checksums to the container, in
// fragments if it is larger than the MTU. Malformed packets are not sent.
func (e *Endpoint) SendIP(packet []byte) {
	h, ok := inet.Parse(packet)
	if !ok {
		return
	}
	if mtu := int(e.MTU()); len(packet) > mtu {
		e.fragments(h, packet, mtu)
		return
	}
	e.sendIP(h.Dst, packet, nil)
}

// sendIP writes one frame; header and payload are joined on the wire.
func (e *Endpoint) sendIP(to netip.Addr, hdr, payload []byte) {
	v := vectors.Get().(*vector)
	defer v.free()
	b := e.appendEthernet(v.hdr[:tap.HeaderLen], to)
	tap.Header{}.Put(b)
	v.add(b)
	v.add(hdr)
	v.add(payload)
	_ = e.write(v) // lost like on any wire
}

// SendError tells the container what became of a packet that it sent, of which
// quote is the beginning. from is who says so. Errors are limited as RFC 4443
// 2.4 (f) and RFC 1812 4.3.2.8 ask.
func (e *Endpoint) SendError(kind icmp.Kind, mtu uint32, from, to netip.Addr, quote []byte) {
	b := icmp.BuildError(kind, mtu, from, to, quote)
	if b == nil {
		return
	}
	if !e.errors.take() {
		e.cfg.Counters.Inc(flow.ICMPErrorsLimited)
		return
	}
	e.cfg.Counters.Inc(flow.ICMPErrorsSent)
	e.SendIP(b)
}

// SendEchoReply answers an echo request of the container.
func (e *Endpoint) SendEchoReply(from, to netip.Addr, id, seq uint16, payload []byte) {
	e.SendIP(icmp.AppendEcho(nil, icmp.Echo{Reply: true, ID: id, Seq: seq, Payload: payload}, from, to))
}
