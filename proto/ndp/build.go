package ndp

import (
	"encoding/binary"
	"math"
	"net/netip"
	"time"

	"github.com/postern-net/postern/proto/inet"
)

// maxPacket is the size in bytes that no advertisement exceeds: the minimum MTU
// of IPv6 (RFC 8200 section 5). A search list is cut to fit.
const maxPacket = 1280

// maxRDNSS is how many name servers an advertisement carries; resolv.conf(5)
// knows three.
const maxRDNSS = 3

// RouterAdvert is what a router tells a host (RFC 4861 section 4.2). Lifetimes
// are whole seconds on the wire.
type RouterAdvert struct {
	// Lifetime is how long the sender is a default router; 0 to 65,535 s.
	Lifetime time.Duration
	// Managed and Other say that DHCPv6 has addresses, or other settings.
	Managed, Other bool
	// Prefix is on the link. Hosts form addresses in it (SLAAC) if it is a /64,
	// the only length that Ethernet's interface identifiers fit (RFC 4862).
	Prefix netip.Prefix
	// Valid and Preferred are the lifetimes of the prefix.
	Valid, Preferred time.Duration
	// MTU of the link in bytes; 0 leaves the option out.
	MTU uint32
	// LinkAddr is the sender's Ethernet address; zero leaves the option out.
	LinkAddr MAC
	// DNS are name servers, at most three are sent; Search is the search list
	// (RFC 8106). DNSLifetime is the lifetime of both.
	DNS         []netip.Addr
	Search      []string
	DNSLifetime time.Duration
}

// AppendRouterAdvert appends a whole IPv6 packet of at most 1280 bytes. from must
// be link-local (RFC 4861 section 6.1.2).
func AppendRouterAdvert(b []byte, ra RouterAdvert, from, to netip.Addr) []byte {
	b, start := begin(b, TypeRouterAdvert, from, to)
	b = append(b, inet.DefaultTTL, flag(0x80, ra.Managed)|flag(0x40, ra.Other))
	b = binary.BigEndian.AppendUint16(b, uint16(min(seconds(ra.Lifetime), math.MaxUint16)))
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0) // reachable and retransmission times: unspecified
	b = appendLinkAddr(b, optSourceLinkAddr, ra.LinkAddr)
	if ra.MTU != 0 {
		b = append(b, optMTU, 1, 0, 0)
		b = binary.BigEndian.AppendUint32(b, ra.MTU)
	}
	b = appendPrefix(b, ra)
	b = appendRDNSS(b, ra)
	b = appendDNSSL(b, ra, maxPacket-(len(b)-start))
	return finish(b, start, from, to)
}

// AppendNeighborAdvert appends a whole IPv6 packet (RFC 4861 section 4.4).
func AppendNeighborAdvert(b []byte, n Neighbor, from, to netip.Addr) []byte {
	b, start := begin(b, TypeNeighborAdvert, from, to)
	flags := flag(0x80, n.Router) | flag(0x40, n.Solicited) | flag(0x20, n.Override)
	b = append(b, flags, 0, 0, 0)
	target := n.Target.As16()
	b = append(b, target[:]...)
	b = appendLinkAddr(b, optTargetLinkAddr, n.LinkAddr)
	return finish(b, start, from, to)
}

// begin appends an IPv6 header and the head of a message; start is where the
// packet starts. finish completes lengths and checksum.
func begin(b []byte, typ uint8, from, to netip.Addr) (out []byte, start int) {
	start = len(b)
	b = inet.AppendIP(b, inet.Header{Src: from, Dst: to, Proto: inet.ProtoICMPv6, TTL: hopLimit}, 0)
	return append(b, typ, 0, 0, 0), start
}

func finish(b []byte, start int, from, to netip.Addr) []byte {
	msg := b[start+inet.IPv6HeaderLen:]
	binary.BigEndian.PutUint16(b[start+4:], uint16(len(msg)))
	sum := inet.Checksum(msg, inet.PseudoSum(from, to, inet.ProtoICMPv6, len(msg)))
	binary.BigEndian.PutUint16(msg[2:], sum)
	return b
}

func flag(bit byte, set bool) byte {
	if set {
		return bit
	}
	return 0
}

func appendLinkAddr(b []byte, typ uint8, addr MAC) []byte {
	if addr == (MAC{}) {
		return b
	}
	return append(append(b, typ, 1), addr[:]...)
}

func appendPrefix(b []byte, ra RouterAdvert) []byte {
	if !ra.Prefix.IsValid() {
		return b
	}
	flags := byte(0x80) // on-link
	if ra.Prefix.Bits() == 64 {
		flags |= 0x40 // autonomous
	}
	b = append(b, optPrefix, 4, byte(ra.Prefix.Bits()), flags)
	b = binary.BigEndian.AppendUint32(b, seconds(ra.Valid))
	b = binary.BigEndian.AppendUint32(b, seconds(ra.Preferred))
	addr := ra.Prefix.Masked().Addr().As16()
	return append(append(b, 0, 0, 0, 0), addr[:]...)
}

func appendRDNSS(b []byte, ra RouterAdvert) []byte {
	dns := ra.DNS[:min(len(ra.DNS), maxRDNSS)]
	if len(dns) == 0 {
		return b
	}
	b = append(b, optRDNSS, byte(1+2*len(dns)), 0, 0)
	b = binary.BigEndian.AppendUint32(b, seconds(ra.DNSLifetime))
	for _, d := range dns {
		addr := d.As16()
		b = append(b, addr[:]...)
	}
	return b
}

// appendDNSSL appends the search list in at most room bytes. The option's length
// counts units of 8 bytes, and zero bytes fill the last one (RFC 8106 5.2).
func appendDNSSL(b []byte, ra RouterAdvert, room int) []byte {
	const head = 8
	names := inet.AppendNames(nil, ra.Search, room/8*8-head)
	if len(names) == 0 {
		return b
	}
	for len(names)%8 != 0 {
		names = append(names, 0)
	}
	b = append(b, optDNSSL, byte((head+len(names))/8), 0, 0)
	b = binary.BigEndian.AppendUint32(b, seconds(ra.DNSLifetime))
	return append(b, names...)
}

// seconds clips a lifetime to what the wire holds; all ones mean for ever.
func seconds(d time.Duration) uint32 {
	return uint32(min(max(d/time.Second, 0), math.MaxUint32))
}
