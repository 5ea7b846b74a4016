package icmp

import (
	"encoding/binary"
	"net/netip"

	"github.com/postern-net/postern/proto/inet"
)

// Echo types (RFC 792, RFC 4443 section 4).
const (
	echoReply4   = 0
	echoRequest4 = 8
	echoRequest6 = 128
	echoReply6   = 129
)

// headerLen is the length of every message's fixed part.
const headerLen = 8

// Echo is an echo request or reply. When parsed, Payload aliases the message.
type Echo struct {
	// Reply tells a reply from a request.
	Reply   bool
	ID, Seq uint16
	Payload []byte
}

// ParseEcho reads an ICMP message (an IP payload without padding) of the family
// that v6 names. It is not ok for other messages, a code other than 0, or fewer
// than 8 bytes. The checksum is not looked at; see ChecksumOK.
func ParseEcho(v6 bool, msg []byte) (e Echo, ok bool) {
	if len(msg) < headerLen || msg[1] != 0 {
		return Echo{}, false
	}
	switch {
	case !v6 && msg[0] == echoRequest4, v6 && msg[0] == echoRequest6:
	case !v6 && msg[0] == echoReply4, v6 && msg[0] == echoReply6:
		e.Reply = true
	default:
		return Echo{}, false
	}
	e.ID = binary.BigEndian.Uint16(msg[4:])
	e.Seq = binary.BigEndian.Uint16(msg[6:])
	e.Payload = msg[headerLen:]
	return e, true
}

// ChecksumOK reports whether the message's checksum is right. src and dst are
// those of the IP header; ICMPv6 sums them too.
func ChecksumOK(src, dst netip.Addr, msg []byte) bool {
	return inet.Checksum(msg, pseudo(src, dst, len(msg))) == 0
}

// AppendEcho appends a whole IP packet from from to to, which are of one family,
// with checksums. e.Payload must fit one packet: 65,507 bytes over IPv4, 65,527
// over IPv6.
func AppendEcho(b []byte, e Echo, from, to netip.Addr) []byte {
	typ := uint8(echoRequest4)
	switch {
	case to.Is4() && e.Reply:
		typ = echoReply4
	case !to.Is4() && e.Reply:
		typ = echoReply6
	case !to.Is4():
		typ = echoRequest6
	}
	b = appendIP(b, from, to, headerLen+len(e.Payload))
	start := len(b)
	b = append(b, typ, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, e.ID)
	b = binary.BigEndian.AppendUint16(b, e.Seq)
	b = append(b, e.Payload...)
	putChecksum(b[start:], from, to)
	return b
}

func appendIP(b []byte, from, to netip.Addr, length int) []byte {
	return inet.AppendIP(b, inet.Header{Src: from, Dst: to, Proto: protocol(to)}, length)
}

func protocol(a netip.Addr) uint8 {
	if a.Is4() {
		return inet.ProtoICMP
	}
	return inet.ProtoICMPv6
}

func pseudo(src, dst netip.Addr, length int) uint32 {
	if src.Is4() {
		return 0
	}
	return inet.PseudoSum(src, dst, inet.ProtoICMPv6, length)
}

// putChecksum fills the checksum field of msg, which must be zero.
func putChecksum(msg []byte, src, dst netip.Addr) {
	binary.BigEndian.PutUint16(msg[2:], inet.Checksum(msg, pseudo(src, dst, len(msg))))
}
