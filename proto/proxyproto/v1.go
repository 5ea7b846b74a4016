package proxyproto

import (
	"bytes"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

const signature1 = "PROXY "

// maxLine is the longest line of version 1, with its end (proxy-protocol.txt 2.1).
const maxLine = 107

func append1(b []byte, source, destination netip.AddrPort) []byte {
	if !source.IsValid() {
		return append(b, "PROXY UNKNOWN\r\n"...)
	}
	b = append(b, signature1...)
	b = append(b, family1(source.Addr())...)
	b = append(b, ' ')
	b = source.Addr().AppendTo(b)
	b = append(b, ' ')
	b = destination.Addr().AppendTo(b)
	b = append(b, ' ')
	b = strconv.AppendUint(b, uint64(source.Port()), 10)
	b = append(b, ' ')
	b = strconv.AppendUint(b, uint64(destination.Port()), 10)
	return append(b, "\r\n"...)
}

// family1 is version 1's word for an address's family.
func family1(addr netip.Addr) string {
	if addr.Is4() {
		return "TCP4"
	}
	return "TCP6"
}

func parse1(b []byte) (Header, int, error) {
	if n := min(len(b), len(signature1)); string(b[:n]) != signature1[:n] {
		return Header{}, 0, fmt.Errorf("%w: it starts with %q", ErrMalformed, b[:n])
	}
	end := bytes.IndexByte(b[:min(len(b), maxLine)], '\n')
	switch {
	case end < 0 && len(b) < maxLine:
		return Header{}, 0, ErrIncomplete
	case end < 0:
		return Header{}, 0, fmt.Errorf("%w: no end of line in %d bytes", ErrMalformed, maxLine)
	case b[end-1] != '\r': // end >= len(signature1): the signature has no newline
		return Header{}, 0, fmt.Errorf("%w: the line does not end with CR LF", ErrMalformed)
	}
	h, err := parseLine(string(b[len(signature1) : end-1]))
	return h, end + 1, err
}

// parseLine reads what follows the signature.
func parseLine(line string) (Header, error) {
	h := Header{Version: V1}
	if line == "UNKNOWN" || strings.HasPrefix(line, "UNKNOWN ") {
		return h, nil // the rest has to be ignored
	}
	fields := strings.Split(line, " ")
	if len(fields) != 5 {
		return Header{}, fmt.Errorf("%w: %d fields in %q, want 5", ErrMalformed, len(fields), line)
	}
	var err error
	if h.Source, err = parseEnd(fields[0], fields[1], fields[3]); err != nil {
		return Header{}, err
	}
	if h.Destination, err = parseEnd(fields[0], fields[2], fields[4]); err != nil {
		return Header{}, err
	}
	return h, nil
}

// parseEnd reads one address and its port. A port has no sign and no leading zero.
func parseEnd(family, host, port string) (netip.AddrPort, error) {
	addr, err := netip.ParseAddr(host)
	if err != nil || addr.Zone() != "" || family1(addr) != family {
		return netip.AddrPort{}, fmt.Errorf("%w: %q is no %s address", ErrMalformed, host, family)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || strconv.FormatUint(n, 10) != port {
		return netip.AddrPort{}, fmt.Errorf("%w: %q is no port", ErrMalformed, port)
	}
	return netip.AddrPortFrom(addr, uint16(n)), nil
}
