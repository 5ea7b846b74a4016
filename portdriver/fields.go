package portdriver

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// splitFields splits at colons outside brackets.
func splitFields(text string) (fields []string, err error) {
	start, inside := 0, false
	for i, c := range []byte(text) {
		switch {
		case c == '[' && !inside && i == start:
			inside = true
		case c == ']' && inside && (i+1 == len(text) || text[i+1] == ':'):
			inside = false
		case c == '[' || c == ']':
			return nil, fmt.Errorf("a bracket out of place, want [ADDRESS] between colons")
		case c == ':' && !inside:
			fields, start = append(fields, text[start:i]), i+1
		}
	}
	if inside {
		return nil, fmt.Errorf("a bracket is not closed, want [ADDRESS]")
	}
	return append(fields, text[start:]), nil
}

// isAddr tells addresses from ports by their shape.
func isAddr(field string) bool { return strings.ContainsAny(field, "[.") }

// parseAddr parses an address with or without brackets.
func parseAddr(field, side string) (netip.Addr, error) {
	inner := field
	if strings.HasPrefix(field, "[") {
		inner = field[1 : len(field)-1] // splitFields has seen the other bracket
	}
	addr, err := netip.ParseAddr(inner)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("the %s's %s is no IP address, want one like 127.0.0.1 or [::1]", side, quote(field))
	}
	if addr.Is4In6() && addr.Zone() != "" {
		return netip.Addr{}, fmt.Errorf("the %s's %s has a zone, want one with link-local addresses only", side, quote(field))
	}
	return addr.Unmap(), nil
}

// parsePorts parses PORT or FIRST-LAST, none of them 0.
func parsePorts(field, side string) (first uint16, count int, err error) {
	a, b, isRange := strings.Cut(field, "-")
	if first, err = parsePort(a, side); err != nil || !isRange {
		return first, 1, err
	}
	last, err := parsePort(b, side)
	if err != nil {
		return 0, 0, err
	}
	if last < first {
		return 0, 0, fmt.Errorf("the %s's range %s runs backwards, want %d-%d", side, field, last, first)
	}
	return first, int(last-first) + 1, nil
}

func parsePort(text, side string) (uint16, error) {
	if text == "" {
		return 0, fmt.Errorf("a %s port is missing, %s", side, specForm)
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%s is no %s port, want 1 to 65535", quote(text), side)
	}
	return uint16(n), nil
}

// cutProto cuts /PROTO off.
func cutProto(text string) (rest string, proto Proto, err error) {
	i := strings.LastIndexByte(text, '/')
	if i < 0 {
		return text, TCP, nil
	}
	proto = Proto(strings.ToLower(text[i+1:]))
	if !proto.known() {
		return "", "", fmt.Errorf("unknown protocol %s, want %s", quote(text[i+1:]), protoNames())
	}
	return text[:i], proto, nil
}

func parseProxy(text string) (int, error) {
	switch text {
	case "v1":
		return 1, nil
	case "v2":
		return 2, nil
	}
	return 0, fmt.Errorf("unknown PROXY protocol %s, want proxy=v1 or proxy=v2 at the end", quote(text))
}
