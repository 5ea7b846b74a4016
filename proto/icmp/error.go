package icmp

import (
	"encoding/binary"
	"net/netip"

	"github.com/postern-net/postern/proto/inet"
)

// Sizes in bytes of whole error packets.
const (
	// maxError4 is the size up to which an IPv4 error quotes (RFC 1812 section 4.3.2.3).
	maxError4 = 576
	// maxError6 is the minimum MTU of IPv6, up to which an error quotes (RFC
	// 4443 section 3.1 and 2.4 c).
	maxError6 = 1280
)

// BuildError returns a whole IP packet that tells to, the sender of the packet
// quoted, what became of it. from and to choose the family and must agree with
// quoted. mtu is the next hop's, in bytes, and used for FragmentationNeeded
// only; IPv4 carries at most 65,535.
//
// As much of quoted is copied as the RFCs allow, and no padding after the quoted
// packet's end; quoted may itself be cut off after its headers. The result is nil when MayAnswer is false or the families disagree.
func BuildError(kind Kind, mtu uint32, from, to netip.Addr, quoted []byte) []byte {
	h, ok := inet.ParseQuote(quoted)
	if !ok || !kind.valid() || !mayAnswer(h, quoted) || from.Is4() != to.Is4() || to.Is4() != h.Src.Is4() {
		return nil
	}
	v6 := !to.Is4()
	limit := maxError4 - inet.IPv4HeaderLen - headerLen
	if v6 {
		limit = maxError6 - inet.IPv6HeaderLen - headerLen
	}
	quoted = quoted[:min(h.TotalLen, limit)]
	b := make([]byte, 0, inet.IPv6HeaderLen+headerLen+len(quoted))
	b = appendIP(b, from, to, headerLen+len(quoted))
	start := len(b)
	typ, code := kind.Wire(v6)
	b = append(b, typ, code, 0, 0)
	b = binary.BigEndian.AppendUint32(b, restOfHeader(kind, mtu, v6))
	b = append(b, quoted...)
	putChecksum(b[start:], from, to)
	return b
}

// restOfHeader is the second word of the message: the MTU, or zero.
func restOfHeader(kind Kind, mtu uint32, v6 bool) uint32 {
	switch {
	case kind != FragmentationNeeded:
		return 0
	case v6:
		return mtu
	}
	return min(mtu, 65535) // the upper half is unused (RFC 1191 section 4)
}

// MayAnswer reports whether an error may be sent about a packet: it is well
// formed, is no ICMP error itself, no later fragment, and was sent from one host
// to one host (RFC 1122 section 3.2.2, RFC 4443 section 2.4 e). RFC 4443 lets
// packet-too-big answer multicast; nothing here forwards multicast, so that
// exception is not made. Subnet broadcast addresses are the caller's to know.
func MayAnswer(packet []byte) bool {
	h, ok := inet.ParseQuote(packet)
	return ok && mayAnswer(h, packet)
}

func mayAnswer(h inet.Header, packet []byte) bool {
	if h.FragOffset != 0 || !oneHost(h.Src) || !oneHost(h.Dst) {
		return false
	}
	msg := h.Payload(packet)
	switch {
	case h.Src.Is4() && h.Proto == inet.ProtoICMP:
		return len(msg) > 0 && query4(msg[0])
	case !h.Src.Is4() && h.Proto == inet.ProtoICMPv6:
		return len(msg) > 0 && msg[0] >= 128 && msg[0] != redirect6
	}
	return true
}

// redirect6 is the one informational type that is answered like an error (RFC 4443 2.4 e.2).
const redirect6 = 137

// query4 reports whether an ICMPv4 type is a query: echo, timestamp and the
// obsolete information and mask requests (RFC 1122 section 3.2.2).
func query4(typ uint8) bool { return typ == 0 || typ == 8 || typ >= 13 && typ <= 18 }

func oneHost(a netip.Addr) bool {
	return !a.IsUnspecified() && !a.IsMulticast() && a != inet.LimitedBroadcast
}
