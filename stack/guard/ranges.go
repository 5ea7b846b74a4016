package guard

import "net/netip"

// block is a range of addresses with the reason for which it is refused.
type block struct {
	prefix netip.Prefix
	reason string
}

func blockOf(prefix, reason string) block { return block{netip.MustParsePrefix(prefix), reason} }

// blocks4 is looked through in order: the more precise reason comes first.
// Sources: IANA IPv4 special-purpose registry (RFC 6890) and the providers'
// documentation of their metadata services.
var blocks4 = []block{
	blockOf("0.0.0.0/32", ReasonUnspecified),
	// Linux sends 0.0.0.0 to itself; the rest of the block names "this network".
	blockOf("0.0.0.0/8", ReasonReserved),
	blockOf("127.0.0.0/8", ReasonHostLoopback),
	// AWS, GCP, Azure, OpenStack and others all answer here.
	blockOf("169.254.169.254/32", ReasonMetadata),
	blockOf("169.254.0.0/16", ReasonLinkLocal),
	// Alibaba Cloud instance metadata.
	blockOf("100.100.100.200/32", ReasonMetadata),
	// Oracle Cloud at Customer instance metadata.
	blockOf("192.0.0.192/32", ReasonMetadata),
	// Azure WireServer, the host agent's channel.
	blockOf("168.63.129.16/32", ReasonMetadata),
	blockOf("224.0.0.0/4", ReasonMulticast),
	blockOf("255.255.255.255/32", ReasonBroadcast),
	blockOf("240.0.0.0/4", ReasonReserved),
}

// blocks6 is blocks4's counterpart (IANA IPv6 special-purpose registry).
var blocks6 = []block{
	blockOf("::/128", ReasonUnspecified),
	blockOf("::1/128", ReasonHostLoopback),
	blockOf("fe80::/10", ReasonLinkLocal),
	// Deprecated by RFC 3879, which also says that routers keep refusing it.
	blockOf("fec0::/10", ReasonSiteLocal),
	blockOf("ff00::/8", ReasonMulticast),
	// AWS's own services: ::254 instance metadata, ::23 EKS pod identity.
	blockOf("fd00:ec2::/32", ReasonMetadata),
	// Google Compute Engine metadata server over IPv6.
	blockOf("fd20:ce::254/128", ReasonMetadata),
	// Oracle Cloud instance metadata over IPv6.
	blockOf("fd00:c1::a9fe:a9fe/128", ReasonMetadata),
	// Scaleway instance metadata over IPv6.
	blockOf("fd00:42::42/128", ReasonMetadata),
	// Akamai (Linode) instance metadata over IPv6.
	blockOf("fd00:a9fe:a9fe::1/128", ReasonMetadata),
	// Alibaba Cloud instance metadata over IPv6.
	blockOf("fd00:100::100:200/128", ReasonMetadata),
}

var (
	// reserved6 is 0000::/8 (RFC 4291 2.4): v4-compatible, SIIT and unassigned
	// space. Only the NAT64 prefixes are taken out of it.
	reserved6 = netip.MustParsePrefix("::/8")

	nat64      = netip.MustParsePrefix("64:ff9b::/96")   // RFC 6052
	nat64Local = netip.MustParsePrefix("64:ff9b:1::/48") // RFC 8215
	sixToFour  = netip.MustParsePrefix("2002::/16")      // RFC 3056
	teredo     = netip.MustParsePrefix("2001::/32")      // RFC 4380
)

func look(blocks []block, addr netip.Addr) string {
	for i := range blocks {
		if blocks[i].prefix.Contains(addr) {
			return blocks[i].reason
		}
	}
	return ""
}

func (p Policy) refuse4(addr netip.Addr) string {
	if r := look(blocks4, addr); r != "" {
		return r
	}
	return p.ownPrefix(addr)
}

func (p Policy) refuse6(addr netip.Addr) string {
	if r := look(blocks6, addr); r != "" {
		return r
	}
	var buf [3]netip.Addr
	v4s := embedded(buf[:0], addr)
	for _, v4 := range v4s {
		if r := p.refuse4(v4); r != "" {
			return r
		}
	}
	if reserved6.Contains(addr) && !nat64.Contains(addr) && !nat64Local.Contains(addr) {
		return ReasonReserved
	}
	return p.ownPrefix(addr)
}

// embedded appends the IPv4 addresses that an IPv6 address carries by one of
// the standard translations and tunnels. Each of them is a way to that address
// if the host runs the translator.
func embedded(to []netip.Addr, addr netip.Addr) []netip.Addr {
	b := addr.As16()
	low := netip.AddrFrom4([4]byte(b[12:16]))
	switch {
	case nat64Local.Contains(addr):
		// The operator chooses the prefix length. With /48 and /56 and a zero
		// suffix the last 32 bits read 0.0.0.0, which is refused; /64 has the
		// address in bytes 9 to 12 (RFC 6052 2.2). Both readings must pass, which
		// refuses some /64 forms without need.
		to = append(to, low)
		if b[8] == 0 && b[13]|b[14]|b[15] == 0 {
			to = append(to, netip.AddrFrom4([4]byte(b[9:13])))
		}
	case reserved6.Contains(addr):
		// v4-compatible (RFC 4291 2.5.5.1), SIIT (RFC 7915), NAT64.
		to = append(to, low)
	case sixToFour.Contains(addr):
		to = append(to, netip.AddrFrom4([4]byte(b[2:6])))
	case teredo.Contains(addr):
		// Server in the clear, client with every bit inverted (RFC 4380 4).
		client := [4]byte{^b[12], ^b[13], ^b[14], ^b[15]}
		to = append(to, netip.AddrFrom4([4]byte(b[4:8])), netip.AddrFrom4(client))
	}
	// ISATAP: interface identifier 0000:5efe or 0200:5efe and the IPv4 address
	// (RFC 5214 6.1); the two lowest bits of the first byte are flags.
	if b[8]&^3 == 0 && b[9] == 0 && b[10] == 0x5e && b[11] == 0xfe {
		to = append(to, low)
	}
	return to
}
