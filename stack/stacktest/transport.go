package stacktest

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/postern-net/postern/proto/icmp"
	"github.com/postern-net/postern/proto/inet"
	"github.com/postern-net/postern/stack/tap"
)

// TCP checks that the packet is a TCP segment with a right checksum, and applies
// the checks.
func TCP(checks ...Check) Check {
	return func(tb testing.TB, p *Packet) {
		tb.Helper()
		t := p.Transport
		if p.IP.Proto != inet.ProtoTCP || len(t) < 20 || int(t[12]>>4)*4 < 20 || int(t[12]>>4)*4 > len(t) {
			tb.Fatalf("no TCP segment: protocol %d, % x", p.IP.Proto, t[:min(len(t), 40)])
		}
		checksum(tb, p, 16)
		header := int(t[12]>>4) * 4
		p.Payload = t[header:]
		if p.Header.GSO != tap.GSONone && int(p.Header.HdrLen) != 14+p.IP.HeaderLen+header {
			tb.Errorf("header length %d in the virtio header, want %d", p.Header.HdrLen, 14+p.IP.HeaderLen+header)
		}
		for _, c := range checks {
			c(tb, p)
		}
	}
}

// UDP checks that the packet is a UDP datagram with right length and checksum,
// and applies the checks.
func UDP(checks ...Check) Check {
	return func(tb testing.TB, p *Packet) {
		tb.Helper()
		u, ok := inet.ParseUDP(p.Transport)
		if p.IP.Proto != inet.ProtoUDP || !ok || len(u.Payload)+8 != len(p.Transport) {
			tb.Fatalf("no UDP datagram: protocol %d, % x", p.IP.Proto, p.Transport[:min(len(p.Transport), 40)])
		}
		checksum(tb, p, 6)
		p.Payload = u.Payload
		for _, c := range checks {
			c(tb, p)
		}
	}
}

// ICMPError checks that the packet is the error of that kind and quotes the
// beginning of the packet sent, its transport ports included.
func ICMPError(kind icmp.Kind, sent []byte) Check {
	return func(tb testing.TB, p *Packet) {
		tb.Helper()
		v6 := !p.IP.Src.Is4()
		t := p.Transport
		proto := uint8(inet.ProtoICMP)
		if v6 {
			proto = inet.ProtoICMPv6
		}
		if p.IP.Proto != proto || len(t) < 8 {
			tb.Fatalf("no ICMP message: protocol %d, % x", p.IP.Proto, t[:min(len(t), 40)])
		}
		checksum(tb, p, 2)
		typ, code := kind.Wire(v6)
		if t[0] != typ || t[1] != code {
			tb.Errorf("ICMP type %d code %d, want %d/%d (%v)", t[0], t[1], typ, code, kind)
		}
		p.Payload = t[8:]
		h, ok := inet.ParseQuote(p.Payload)
		if !ok || h.TotalLen < h.HeaderLen+8 || len(p.Payload) > len(sent) || !bytes.Equal(p.Payload, sent[:len(p.Payload)]) {
			tb.Errorf("quotes % x, want the beginning of % x", p.Payload, sent)
		}
	}
}

// SrcPort checks the source port of TCP or UDP.
func SrcPort(want uint16) Check { return field16("source port", 0, want) }

// DstPort checks the destination port of TCP or UDP.
func DstPort(want uint16) Check { return field16("destination port", 2, want) }

func field16(name string, at int, want uint16) Check {
	return func(tb testing.TB, p *Packet) {
		tb.Helper()
		if got := binary.BigEndian.Uint16(p.Transport[at:]); got != want {
			tb.Errorf("%s %d, want %d", name, got, want)
		}
	}
}

// SeqNum checks the sequence number of a TCP segment.
func SeqNum(want uint32) Check { return field32("sequence number", 4, want) }

// AckNum checks the acknowledgement number of a TCP segment.
func AckNum(want uint32) Check { return field32("acknowledgement number", 8, want) }

func field32(name string, at int, want uint32) Check {
	return func(tb testing.TB, p *Packet) {
		tb.Helper()
		if got := binary.BigEndian.Uint32(p.Transport[at:]); got != want {
			tb.Errorf("%s %d, want %d", name, got, want)
		}
	}
}

// Flags checks the control flags of a TCP segment; PSH is not looked at.
func Flags(want uint8) Check {
	return func(tb testing.TB, p *Packet) {
		tb.Helper()
		if got := p.Transport[13] &^ PSH; got != want&^PSH {
			tb.Errorf("flags %#02x, want %#02x", got, want)
		}
	}
}

// Content checks the payload.
func Content(want []byte) Check {
	return func(tb testing.TB, p *Packet) {
		tb.Helper()
		if !bytes.Equal(p.Payload, want) {
			tb.Errorf("payload of %d bytes is not the expected one of %d: % x", len(p.Payload), len(want), p.Payload[:min(len(p.Payload), 32)])
		}
	}
}

// Seq returns the sequence number of a TCP packet.
func (p *Packet) Seq() uint32 { return binary.BigEndian.Uint32(p.Transport[4:]) }

// TCPFlags returns the control flags of a TCP packet.
func (p *Packet) TCPFlags() uint8 { return p.Transport[13] }

// IsTCP reports whether a frame carries a TCP segment with all of the flags.
func IsTCP(f WireFrame, flags uint8) bool {
	if len(f.Bytes) < 14 {
		return false
	}
	h, ok := inet.Parse(f.Bytes[14:])
	if !ok || h.Proto != inet.ProtoTCP || h.TotalLen-h.HeaderLen < 20 {
		return false
	}
	return f.Bytes[14+h.HeaderLen+13]&flags == flags
}
