package inet

import (
	"encoding/binary"
	"net/netip"
)

// UDP is a datagram's header and payload. The payload aliases the parsed bytes.
type UDP struct {
	SrcPort, DstPort uint16
	// Checksum is the field as received; 0 means that there is none (IPv4 only).
	Checksum uint16
	Payload  []byte
}

// ParseUDP reads the datagram at the start of b, an IP payload. It is not ok
// when the length field is below 8 or reaches beyond b.
func ParseUDP(b []byte) (u UDP, ok bool) {
	if len(b) < UDPHeaderLen {
		return UDP{}, false
	}
	length := int(binary.BigEndian.Uint16(b[4:]))
	if length < UDPHeaderLen || length > len(b) {
		return UDP{}, false
	}
	return UDP{
		SrcPort:  binary.BigEndian.Uint16(b),
		DstPort:  binary.BigEndian.Uint16(b[2:]),
		Checksum: binary.BigEndian.Uint16(b[6:]),
		Payload:  b[UDPHeaderLen:length],
	}, true
}

// AppendUDP appends a whole IP packet that carries one datagram, with both
// checksums. src and dst are of one family; the caller keeps the payload within
// 65,507 bytes (IPv4) and 65,527 bytes (IPv6). payload may be empty.
func AppendUDP(b []byte, src, dst netip.AddrPort, payload []byte) []byte {
	length := UDPHeaderLen + len(payload)
	b = AppendIP(b, Header{Src: src.Addr(), Dst: dst.Addr(), Proto: ProtoUDP, DontFragment: true}, length)
	start := len(b)
	b = binary.BigEndian.AppendUint16(b, src.Port())
	b = binary.BigEndian.AppendUint16(b, dst.Port())
	b = binary.BigEndian.AppendUint16(b, uint16(length))
	b = append(b, 0, 0)
	b = append(b, payload...)
	sum := Checksum(b[start:], PseudoSum(src.Addr(), dst.Addr(), ProtoUDP, length))
	if sum == 0 {
		sum = 0xffff // zero would say that there is no checksum (RFC 768)
	}
	binary.BigEndian.PutUint16(b[start+6:], sum)
	return b
}
