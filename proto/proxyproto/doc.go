// Package proxyproto writes and reads the header of the PROXY protocol, by which a
// proxy tells a server who its client is (HAProxy, proxy-protocol.txt).
//
// The header precedes the first byte of a TCP connection. Version 1 is a line of
// text, version 2 is binary. A client without an IP address, such as one on a unix
// socket, is UNKNOWN in version 1 and LOCAL in version 2: both tell the server to
// take the connection's own addresses.
//
// Only TCP over IP is written and read, and none of version 2's optional fields:
// they are skipped.
package proxyproto

import (
	"errors"
	"net/netip"
)

// The versions.
const (
	V1 = 1
	V2 = 2
)

var (
	// ErrIncomplete says that the bytes may begin a header, but end before it does.
	ErrIncomplete = errors.New("PROXY header is incomplete")
	// ErrMalformed says that the bytes are no header, or not one of TCP over IP.
	ErrMalformed = errors.New("malformed PROXY header")
)

// Header is what a header says.
type Header struct {
	// Version is V1 or V2.
	Version int
	// Source is the client, Destination the address that it connected to. Both are
	// the zero AddrPort if the header names nobody.
	Source, Destination netip.AddrPort
}

// Append appends the header of a version to b. The addresses are those of the
// client and of what it connected to; if one is the zero AddrPort, the header says
// that the client is unknown. Two addresses of different families are both written
// as IPv6, the IPv4 one mapped (RFC 4291 2.5.5.2); zones cannot be told. An unknown
// version appends nothing.
func Append(b []byte, version int, source, destination netip.AddrPort) []byte {
	source, destination = sameFamily(source, destination)
	switch version {
	case V1:
		return append1(b, source, destination)
	case V2:
		return append2(b, source, destination)
	}
	return b
}

// sameFamily brings both addresses to one family, without zones. They are zero
// unless both are valid.
func sameFamily(source, destination netip.AddrPort) (netip.AddrPort, netip.AddrPort) {
	if !source.IsValid() || !destination.IsValid() {
		return netip.AddrPort{}, netip.AddrPort{}
	}
	from, to := source.Addr().Unmap().WithZone(""), destination.Addr().Unmap().WithZone("")
	if from.Is4() != to.Is4() {
		from, to = netip.AddrFrom16(from.As16()), netip.AddrFrom16(to.As16())
	}
	return netip.AddrPortFrom(from, source.Port()), netip.AddrPortFrom(to, destination.Port())
}

// Parse reads the header at the start of b, of either version, and returns how many
// bytes it takes. The error wraps ErrIncomplete if more bytes could make b a header,
// ErrMalformed otherwise.
func Parse(b []byte) (h Header, n int, err error) {
	switch {
	case len(b) == 0:
		return Header{}, 0, ErrIncomplete
	case b[0] == signature1[0]:
		return parse1(b)
	default:
		return parse2(b)
	}
}
