package link

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/postern-net/postern/proto/inet"
	"github.com/postern-net/postern/stack/tap"
)

// A SYN that opens a connection has, of these flags, no other.
const (
	handshakeFlags = header.TCPFlagFin | header.TCPFlagSyn | header.TCPFlagRst | header.TCPFlagAck
	bareSYN        = header.TCPFlagSyn
)

// takenSYN offers a segment to the handler of SYNs if it is one. Its headers must lie
// within the head view, which holds those of any SYN that a kernel sends.
func (e *Endpoint) takenSYN(r *receiver, n int, vnet tap.Header, h inet.Header) bool {
	if e.cfg.Handlers.SYN == nil || h.Proto != inet.ProtoTCP || h.Fragment() || vnet.GSO != tap.GSONone ||
		h.TotalLen-h.HeaderLen < header.TCPMinimumSize {
		return false
	}
	at := ethernetLen + h.HeaderLen + flagsAt
	if at >= headLen || header.TCPFlags(r.head.AsSlice()[at])&handshakeFlags != bareSYN {
		return false
	}
	packet := r.frame(n)[ethernetLen:]
	return e.cfg.Handlers.SYN(Packet{Header: h, Bytes: packet[:h.TotalLen], Partial: vnet.NeedsCsum})
}

// Resubmit gives netstack a SYN that Handlers.SYN took, as if it had just arrived. The
// packet is copied. It may be called on any goroutine.
func (e *Endpoint) Resubmit(p Packet) {
	frame := binary.BigEndian.AppendUint16(append(append(make([]byte, 0, ethernetLen+len(p.Bytes)),
		e.cfg.GatewayMAC...), e.cfg.ContainerMAC...), etherType(p.Src))
	e.toNetstack(p.Header, func() buffer.Buffer { return buffer.MakeWithData(append(frame, p.Bytes...)) })
}

// Reinject writes a packet of the container back to it, as if the gateway had sent it.
// The packet is what a handler got, or a copy. It may be called on any goroutine, and
// waits while the device is full.
func (e *Endpoint) Reinject(p Packet) error {
	start := uint16(ethernetLen + p.HeaderLen)
	vnet := tap.Header{}
	switch {
	case p.Segment > 0:
		return e.reinjectBatch(p)
	case p.Partial && p.Proto == inet.ProtoTCP:
		vnet = tap.Header{NeedsCsum: true, CsumStart: start, CsumOffset: header.TCPChecksumOffset}
	case p.Partial:
		vnet = tap.Header{NeedsCsum: true, CsumStart: start, CsumOffset: 6}
	case len(p.Bytes) > int(e.MTU()):
		e.SendIP(p.Bytes) // it came in fragments
		return nil
	}
	return e.writeIP(vnet, p.Src, p.Bytes)
}

// reinjectBatch is Reinject for a UDP super-segment, which needs a device that takes
// some, and a checksum of the pseudo-header only.
func (e *Endpoint) reinjectBatch(p Packet) error {
	u, ok := inet.ParseUDP(p.Payload(p.Bytes))
	if !ok {
		return nil
	}
	if e.cfg.Device.Offloads().USO {
		start := p.HeaderLen
		headers := append(make([]byte, 0, 64), p.Bytes[:start+inet.UDPHeaderLen]...)
		sum := inet.PseudoSum(p.Src, p.Dst, inet.ProtoUDP, p.TotalLen-start)
		binary.BigEndian.PutUint16(headers[start+6:], inet.Fold(sum))
		err := e.writeIP(tap.Header{
			NeedsCsum: true, CsumStart: uint16(ethernetLen + start), CsumOffset: 6, HdrLen: uint16(ethernetLen + len(headers)),
			GSO: tap.GSOUDP, Segment: uint16(p.Segment),
		}, p.Src, headers, p.Bytes[len(headers):])
		if !errors.Is(err, unix.EINVAL) {
			return err
		}
		e.cfg.Device.DisableUSO()
	}
	e.SendUDP(netip.AddrPortFrom(p.Src, u.SrcPort), netip.AddrPortFrom(p.Dst, u.DstPort), u.Payload, p.Segment)
	return nil
}

// SendReset answers a SYN that the container sent as a host does on which nobody
// listens (RFC 9293 section 3.10.7.1).
func (e *Endpoint) SendReset(p Packet) {
	segment := header.TCP(p.Payload(p.Bytes))
	if len(segment) < header.TCPMinimumSize {
		return
	}
	ack := segment.SequenceNumber() + 1
	if data := len(segment) - int(segment.DataOffset()); data > 0 {
		ack += uint32(data)
	}
	b := inet.AppendIP(make([]byte, 0, inet.IPv6HeaderLen+header.TCPMinimumSize),
		inet.Header{Src: p.Dst, Dst: p.Src, Proto: inet.ProtoTCP, DontFragment: true}, header.TCPMinimumSize)
	at := len(b)
	b = b[:at+header.TCPMinimumSize]
	header.TCP(b[at:]).Encode(&header.TCPFields{
		SrcPort: segment.DestinationPort(), DstPort: segment.SourcePort(), AckNum: ack,
		DataOffset: header.TCPMinimumSize, Flags: header.TCPFlagRst | header.TCPFlagAck,
	})
	sum := inet.PseudoSum(p.Dst, p.Src, inet.ProtoTCP, header.TCPMinimumSize)
	header.TCP(b[at:]).SetChecksum(inet.Checksum(b[at:], sum))
	e.sendIP(p.Src, b, nil)
}

// writeIP writes one frame to the container; the parts of the packet are joined on
// the wire. family is an address of the packet.
func (e *Endpoint) writeIP(vnet tap.Header, family netip.Addr, parts ...[]byte) error {
	v := vectors.Get().(*vector)
	defer v.free()
	b := e.appendEthernet(v.hdr[:tap.HeaderLen], family)
	vnet.Put(b)
	v.add(b)
	for _, part := range parts {
		v.add(part)
	}
	return e.write(v)
}

// etherType is the type of a frame that carries packets of an address's family.
func etherType(a netip.Addr) uint16 {
	if a.Is4() {
		return uint16(header.IPv4ProtocolNumber)
	}
	return uint16(header.IPv6ProtocolNumber)
}
