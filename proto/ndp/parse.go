package ndp

import (
	"net/netip"

	"github.com/postern-net/postern/proto/icmp"
	"github.com/postern-net/postern/proto/inet"
)

// ICMPv6 types of neighbour discovery (RFC 4861 section 4).
const (
	TypeRouterSolicit   = 133
	TypeRouterAdvert    = 134
	TypeNeighborSolicit = 135
	TypeNeighborAdvert  = 136
	TypeRedirect        = 137
)

// Option types (RFC 4861 section 4.6, RFC 8106).
const (
	optSourceLinkAddr = 1
	optTargetLinkAddr = 2
	optPrefix         = 3
	optMTU            = 5
	optRDNSS          = 25
	optDNSSL          = 31
)

// hopLimit proves that a message was not forwarded (RFC 4861 section 3.1).
const hopLimit = 255

// MAC is an Ethernet address. The zero value means that there is none.
type MAC = [6]byte

// Is reports whether an ICMPv6 type is neighbour discovery.
func Is(typ uint8) bool { return typ >= TypeRouterSolicit && typ <= TypeRedirect }

// Valid reports whether a message may be looked at: it was not forwarded, is not
// a piece of a fragmented packet (RFC 6980), has code 0 and a right checksum.
// msg is h.Payload of the packet.
func Valid(h inet.Header, msg []byte) bool {
	return h.Proto == inet.ProtoICMPv6 && h.TTL == hopLimit && !h.Fragment() &&
		len(msg) >= 8 && msg[1] == 0 && icmp.ChecksumOK(h.Src, h.Dst, msg)
}

// Neighbor is a neighbour solicitation or advertisement.
type Neighbor struct {
	// Target is the address that is asked for or told about.
	Target netip.Addr
	// LinkAddr is the sender's (solicitation) or target's (advertisement)
	// link-layer address, zero if not given.
	LinkAddr MAC
	// Router, Solicited and Override are the flags of an advertisement.
	Router, Solicited, Override bool
}

// ParseRouterSolicit reads a router solicitation from src (RFC 4861 section
// 6.1.1); linkAddr is the sender's link-layer address, zero if not given.
func ParseRouterSolicit(src netip.Addr, msg []byte) (linkAddr MAC, ok bool) {
	if len(msg) < 8 || msg[0] != TypeRouterSolicit {
		return MAC{}, false
	}
	linkAddr, ok = findLinkAddr(msg[8:], optSourceLinkAddr)
	if src.IsUnspecified() && linkAddr != (MAC{}) {
		return MAC{}, false
	}
	return linkAddr, ok
}

// ParseNeighborSolicit reads a neighbour solicitation from src to dst (RFC 4861
// section 7.1.1). One from the unspecified address is duplicate address
// detection (RFC 4862), and must go to the target's solicited-node address.
func ParseNeighborSolicit(src, dst netip.Addr, msg []byte) (n Neighbor, ok bool) {
	n, ok = parseNeighbor(TypeNeighborSolicit, optSourceLinkAddr, msg)
	if !ok {
		return Neighbor{}, false
	}
	if src.IsUnspecified() && (dst != SolicitedNode(n.Target) || n.LinkAddr != (MAC{})) {
		return Neighbor{}, false
	}
	return n, true
}

// ParseNeighborAdvert reads a neighbour advertisement to dst (RFC 4861 section
// 7.1.2).
func ParseNeighborAdvert(dst netip.Addr, msg []byte) (n Neighbor, ok bool) {
	n, ok = parseNeighbor(TypeNeighborAdvert, optTargetLinkAddr, msg)
	if !ok {
		return Neighbor{}, false
	}
	n.Router, n.Solicited, n.Override = msg[4]&0x80 != 0, msg[4]&0x40 != 0, msg[4]&0x20 != 0
	if dst.IsMulticast() && n.Solicited {
		return Neighbor{}, false
	}
	return n, true
}

func parseNeighbor(typ, option uint8, msg []byte) (n Neighbor, ok bool) {
	if len(msg) < 24 || msg[0] != typ {
		return Neighbor{}, false
	}
	n.Target = netip.AddrFrom16([16]byte(msg[8:24]))
	if n.Target.IsMulticast() || n.Target.Is4In6() {
		return Neighbor{}, false
	}
	n.LinkAddr, ok = findLinkAddr(msg[24:], option)
	return n, ok
}

// findLinkAddr walks the options and returns the Ethernet address in the first
// one of the given type. It is not ok when an option has no length or reaches
// beyond the message.
func findLinkAddr(options []byte, typ uint8) (addr MAC, ok bool) {
	for len(options) > 0 {
		if len(options) < 8 {
			return MAC{}, false
		}
		length := int(options[1]) * 8
		if length == 0 || length > len(options) {
			return MAC{}, false
		}
		if options[0] == typ && length == 8 && addr == (MAC{}) {
			addr = MAC(options[2:8])
		}
		options = options[length:]
	}
	return addr, true
}

// SolicitedNode returns the multicast address that an address's solicitations go
// to, ff02::1:ffXX:XXXX (RFC 4291 section 2.7.1).
func SolicitedNode(a netip.Addr) netip.Addr {
	b := a.As16()
	return netip.AddrFrom16([16]byte{0: 0xff, 1: 0x02, 11: 1, 12: 0xff, 13: b[13], 14: b[14], 15: b[15]})
}

// AllNodes is the multicast address of every node on the link (RFC 4291).
func AllNodes() netip.Addr { return netip.IPv6LinkLocalAllNodes() }
