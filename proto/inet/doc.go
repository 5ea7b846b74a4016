// Package inet reads and writes the headers that every service shares: IPv4
// (RFC 791), IPv6 with its extension headers (RFC 8200), UDP (RFC 768) and the
// Internet checksum (RFC 1071).
//
// The packets come from a container that is not trusted. A parser here checks
// every length before it looks at a byte, accepts bytes after the packet
// (Ethernet pads short frames), allocates nothing, and says with a bool whether
// the packet is well formed: its caller counts and drops, and has no use for
// more. Builders append to a slice and leave ownership with the caller.
//
// Parsers do not verify checksums, because a frame whose sender left the
// checksum to the device is valid without one. IPv4HeaderOK, and the Sum
// functions for transport headers, are for callers that know that the sum is there.
package inet
