package link

import (
	"encoding/binary"

	"github.com/postern-net/postern/proto/inet"
	"github.com/postern-net/postern/stack/internal/flow"
	"github.com/postern-net/postern/stack/tap"
)

// checksumOK reports whether the transport checksum of an unfragmented packet
// is right, or vouched for by the kernel; a wrong one is counted. Protocols
// without a checksum that we know are fine.
func (e *Endpoint) checksumOK(vnet tap.Header, p Packet) bool {
	if vnet.NeedsCsum || vnet.DataValid || transportSumOK(p) {
		return true
	}
	e.cfg.Counters.Inc(flow.DropChecksum)
	return false
}

func transportSumOK(p Packet) bool {
	b := p.Payload(p.Bytes)
	switch p.Proto {
	case inet.ProtoUDP:
		if p.Src.Is4() && len(b) >= inet.UDPHeaderLen && binary.BigEndian.Uint16(b[6:]) == 0 {
			return true // the sender made none (RFC 768)
		}
	case inet.ProtoICMP:
		return inet.Checksum(b, 0) == 0
	case inet.ProtoTCP, inet.ProtoICMPv6:
	default:
		return true
	}
	return inet.Checksum(b, inet.PseudoSum(p.Src, p.Dst, p.Proto, len(b))) == 0
}
