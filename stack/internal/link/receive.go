package link

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/postern-net/postern/proto/inet"
	"github.com/postern-net/postern/stack/internal/flow"
	"github.com/postern-net/postern/stack/tap"
)

const (
	// headLen holds the headers of any packet worth being fast for: Ethernet,
	// IPv6 and TCP with all options are 114 bytes.
	headLen = 128
	bodyLen = 64 << 10

	// flagsAt is where a TCP header has its flags (RFC 9293 section 3.1).
	flagsAt = 13

	// copyBelow is the body size up to which a copy into a view of the right
	// size is cheaper than giving the 64 KiB view away: receive buffers account
	// for bytes, not for the chunk that holds them.
	copyBelow = 16 << 10
)

// receiver is the memory that the one reading goroutine reads into.
type receiver struct {
	hdr  [tap.HeaderLen]byte
	head *buffer.View
	body *buffer.View
	// flat joins head and body where a handler needs the frame in one piece.
	flat []byte
}

func newReceiver() *receiver {
	return &receiver{head: buffer.NewViewSize(headLen), body: buffer.NewViewSize(bodyLen), flat: make([]byte, headLen+bodyLen)}
}

func (r *receiver) release() {
	r.head.Release()
	r.body.Release()
}

// frame returns the first n bytes read, in one piece.
func (r *receiver) frame(n int) []byte {
	head := r.head.AsSlice()
	if n <= headLen {
		return head[:n]
	}
	copy(r.flat, head)
	copy(r.flat[headLen:], r.body.AsSlice()[:n-headLen])
	return r.flat[:n]
}

// take moves the frame's n bytes out as a buffer that belongs to the caller.
func (r *receiver) take(n int) buffer.Buffer {
	head, body := r.head, r.body
	r.head = buffer.NewViewSize(headLen)
	head.CapLength(min(n, headLen))
	b := buffer.MakeWithView(head)
	if n <= headLen {
		return b
	}
	n -= headLen
	if n <= copyBelow {
		b.Append(buffer.NewViewWithData(body.AsSlice()[:n]))
		return b
	}
	r.body = buffer.NewViewSize(bodyLen)
	body.CapLength(n)
	b.Append(body)
	return b
}

// Serve reads frames until the device is closed (os.ErrClosed) or fails, and
// returns the error.
func (e *Endpoint) Serve() error {
	r := newReceiver()
	defer r.release()
	for {
		n, err := e.cfg.Device.Readv(r.hdr[:], r.head.AsSlice(), r.body.AsSlice())
		if err != nil {
			return err
		}
		e.receive(r, n)
	}
}

// receive handles the frame of n bytes in r.
func (e *Endpoint) receive(r *receiver, n int) {
	count := e.cfg.Counters
	count.Inc(flow.FramesIn)
	switch {
	case n < ethernetLen:
		count.Inc(flow.DropRunt)
		return
	case n > e.cfg.MaxFrame: // which the buffers hold
		count.Inc(flow.DropOversized)
		return
	}
	vnet, ok := tap.ParseHeader(r.hdr[:])
	if !ok {
		count.Inc(flow.DropMalformed)
		return
	}
	// The head view alone decides: no header that is looked at here reaches
	// further, and what claims to is refused by the parsers.
	head := r.head.AsSlice()[:min(n, headLen)]
	if dst := head[:6]; dst[0]&1 == 0 && !bytes.Equal(dst, e.cfg.GatewayMAC) {
		count.Inc(flow.DropForeignMAC)
		return
	}
	if e.far.learns {
		e.learn(head)
	}
	switch binary.BigEndian.Uint16(head[12:]) {
	case uint16(header.IPv4ProtocolNumber):
		e.receiveIP(r, n, vnet, 4, head[ethernetLen:])
	case uint16(header.IPv6ProtocolNumber):
		e.receiveIP(r, n, vnet, 6, head[ethernetLen:])
	case uint16(header.ARPProtocolNumber):
		e.serve(r.frame(n))
	default:
		count.Inc(flow.DropUnknownProtocol)
	}
}

// receiveIP sorts an IP packet: fast TCP by a glance at the head, all else by a
// full parse of the frame in one piece.
func (e *Endpoint) receiveIP(r *receiver, n int, vnet tap.Header, version byte, head []byte) {
	if len(head) == 0 || head[0]>>4 != version {
		e.cfg.Counters.Inc(flow.DropMalformed)
		return
	}
	if h, ok := plainTCP(head, n-ethernetLen); ok {
		e.ack.received(n, head[h.HeaderLen+flagsAt]&uint8(header.TCPFlagSyn) != 0)
		e.deliver(r, n, vnet, h)
		return
	}
	frame := r.frame(n)
	if e.serve(frame) {
		return
	}
	packet := frame[ethernetLen:]
	h, ok := inet.Parse(packet)
	if !ok || version == 4 && !inet.IPv4HeaderOK(packet, h.HeaderLen) {
		e.cfg.Counters.Inc(flow.DropMalformed)
		return
	}
	if h.Fragment() {
		e.deliver(r, n, vnet, h)
		return
	}
	e.dispatch(r, n, vnet, h, packet)
}

// dispatch hands an unfragmented packet to the protocol it is for.
func (e *Endpoint) dispatch(r *receiver, n int, vnet tap.Header, h inet.Header, packet []byte) {
	p := Packet{Header: h, Bytes: packet[:h.TotalLen], Partial: vnet.NeedsCsum}
	switch h.Proto {
	case inet.ProtoUDP:
		if !e.sourceOK(h) || !e.checksumOK(vnet, p) {
			return
		}
		if vnet.GSO == tap.GSOUDP {
			p.Segment = int(vnet.Segment)
		}
		e.cfg.Handlers.UDP(p)
	case inet.ProtoICMP, inet.ProtoICMPv6:
		if !e.sourceOK(h) || !e.checksumOK(vnet, p) {
			return
		}
		e.cfg.Handlers.ICMP(p)
	default:
		e.deliver(r, n, vnet, h)
	}
}

// deliver gives the frame to netstack.
func (e *Endpoint) deliver(r *receiver, n int, vnet tap.Header, h inet.Header) {
	if !e.sourceOK(h) {
		return
	}
	if h.Proto == inet.ProtoTCP && !h.Fragment() && !vnet.NeedsCsum && !vnet.DataValid {
		packet := r.frame(n)[ethernetLen:]
		if !e.checksumOK(vnet, Packet{Header: h, Bytes: packet[:h.TotalLen]}) {
			return
		}
	}
	if e.takenSYN(r, n, vnet, h) {
		return
	}
	e.toNetstack(h, func() buffer.Buffer { return r.take(n) })
}

// toNetstack gives netstack a frame from its Ethernet header on.
func (e *Endpoint) toNetstack(h inet.Header, frame func() buffer.Buffer) {
	d := e.attached()
	if d == nil {
		return
	}
	proto := header.IPv4ProtocolNumber
	if !h.Src.Is4() {
		proto = header.IPv6ProtocolNumber
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: frame()})
	defer pkt.DecRef()
	if _, ok := pkt.LinkHeader().Consume(ethernetLen); !ok {
		return
	}
	pkt.NetworkProtocolNumber = proto
	d.DeliverNetworkPacket(proto, pkt)
}

// serve offers the frame to the link's own services and sends their replies.
func (e *Endpoint) serve(frame []byte) (handled bool) {
	replies, handled := e.cfg.Service.Handle(time.Now(), frame)
	for _, b := range replies {
		e.SendFrame(b)
	}
	return handled
}

func (e *Endpoint) sourceOK(h inet.Header) bool {
	if e.cfg.Source(h) == "" {
		return true
	}
	e.cfg.Counters.Inc(flow.DropSpoofed)
	return false
}

// plainTCP reads the header of an unfragmented TCP packet without options or
// extension headers from the first bytes of an IP packet of which the frame
// holds length bytes, padding included. It is not ok for anything else,
// malformed or not: that is left to the full parse.
func plainTCP(head []byte, length int) (h inet.Header, ok bool) {
	switch {
	case len(head) >= inet.IPv4HeaderLen && head[0] == 0x45 && head[9] == inet.ProtoTCP:
		fragment := binary.BigEndian.Uint16(head[6:])&0x3fff != 0
		h = inet.Header{
			Src: netip.AddrFrom4([4]byte(head[12:16])), Dst: netip.AddrFrom4([4]byte(head[16:20])),
			Proto: inet.ProtoTCP, TTL: head[8],
			HeaderLen: inet.IPv4HeaderLen, TotalLen: int(binary.BigEndian.Uint16(head[2:])),
		}
		ok = !fragment && inet.IPv4HeaderOK(head, inet.IPv4HeaderLen)
	case len(head) >= inet.IPv6HeaderLen && head[0]>>4 == 6 && head[6] == inet.ProtoTCP:
		h = inet.Header{
			Src: netip.AddrFrom16([16]byte(head[8:24])), Dst: netip.AddrFrom16([16]byte(head[24:40])),
			Proto: inet.ProtoTCP, TTL: head[7],
			HeaderLen: inet.IPv6HeaderLen, TotalLen: inet.IPv6HeaderLen + int(binary.BigEndian.Uint16(head[4:])),
		}
		ok = !h.Src.Is4In6() && !h.Dst.Is4In6()
	}
	return h, ok && h.TotalLen <= length && h.TotalLen-h.HeaderLen >= header.TCPMinimumSize
}
