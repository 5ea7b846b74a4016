package proxyproto

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// The binary header of version 2 (proxy-protocol.txt 2.2): signature, version and
// command, family and transport, the length of what follows, addresses, ports.
const (
	signature2 = "\r\n\r\n\x00\r\nQUIT\n"
	fixed2     = len(signature2) + 4

	version2     = 0x20
	commandLocal = 0x0
	commandProxy = 0x1

	unspecified = 0x00
	tcpOverIPv4 = 0x11
	tcpOverIPv6 = 0x21

	addresses4 = 2*4 + 2*2
	addresses6 = 2*16 + 2*2
)

func append2(b []byte, source, destination netip.AddrPort) []byte {
	b = append(b, signature2...)
	if !source.IsValid() {
		return append(b, version2|commandLocal, unspecified, 0, 0)
	}
	if source.Addr().Is4() {
		b = append(b, version2|commandProxy, tcpOverIPv4, 0, addresses4)
	} else {
		b = append(b, version2|commandProxy, tcpOverIPv6, 0, addresses6)
	}
	b = append(b, source.Addr().AsSlice()...)
	b = append(b, destination.Addr().AsSlice()...)
	b = binary.BigEndian.AppendUint16(b, source.Port())
	return binary.BigEndian.AppendUint16(b, destination.Port())
}

func parse2(b []byte) (Header, int, error) {
	if n := min(len(b), len(signature2)); string(b[:n]) != signature2[:n] {
		return Header{}, 0, fmt.Errorf("%w: it starts with %q", ErrMalformed, b[:n])
	}
	if len(b) < fixed2 {
		return Header{}, 0, ErrIncomplete
	}
	command, family := b[12], b[13]
	n := fixed2 + int(binary.BigEndian.Uint16(b[14:]))
	switch {
	case command != version2|commandLocal && command != version2|commandProxy:
		return Header{}, 0, fmt.Errorf("%w: version and command %#02x", ErrMalformed, command)
	case len(b) < n:
		return Header{}, 0, ErrIncomplete
	}
	h := Header{Version: V2}
	if command == version2|commandLocal || family == unspecified {
		return h, n, nil // addresses, if there are any, have to be ignored
	}
	var err error
	h.Source, h.Destination, err = parseAddresses(family, b[fixed2:n])
	if err != nil {
		return Header{}, 0, err
	}
	return h, n, nil
}

// parseAddresses reads the addresses and ports at the start of b.
func parseAddresses(family byte, b []byte) (source, destination netip.AddrPort, err error) {
	size := 0
	switch family {
	case tcpOverIPv4:
		size = 4
	case tcpOverIPv6:
		size = 16
	default:
		return source, destination, fmt.Errorf("%w: family and transport %#02x", ErrMalformed, family)
	}
	if want := 2*size + 4; len(b) < want {
		return source, destination, fmt.Errorf("%w: %d bytes of addresses, want %d", ErrMalformed, len(b), want)
	}
	from, _ := netip.AddrFromSlice(b[:size])
	to, _ := netip.AddrFromSlice(b[size : 2*size])
	ports := b[2*size:]
	return netip.AddrPortFrom(from, binary.BigEndian.Uint16(ports)),
		netip.AddrPortFrom(to, binary.BigEndian.Uint16(ports[2:])), nil
}
