// Package ndp reads and writes the neighbour discovery messages (RFC 4861) with
// which a host on a link finds its router, its prefix and its neighbours'
// link-layer addresses.
//
// The parsers take an ICMPv6 message, checked for its checksum by Valid, and the
// builders append whole IPv6 packets. What to answer, and to whom, is decided
// elsewhere; here stands only what RFC 4861 says makes a message valid. Options
// that are not known are skipped, as section 4.6 demands; an option of length
// zero makes the message invalid, or it would never end.
package ndp
