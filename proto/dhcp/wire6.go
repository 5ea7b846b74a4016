package dhcp

import (
	"encoding/binary"
	"net/netip"
)

// DHCPv6 message types (RFC 8415 section 7.3).
const (
	solicit6   = 1
	advertise6 = 2
	request6   = 3
	confirm6   = 4
	renew6     = 5
	rebind6    = 6
	reply6     = 7
	release6   = 8
	decline6   = 9
	inform6    = 11
)

// DHCPv6 options (RFC 8415 section 21; 23 and 24 are RFC 3646).
const (
	optClientID6    = 1
	optServerID6    = 2
	optIANA         = 3
	optIATA         = 4
	optIAAddr       = 5
	optPreference   = 7
	optStatus       = 13
	optRapidCommit  = 14
	optDNS6         = 23
	optDomainList   = 24
	optIAPD         = 25
	optHeader6      = 4
	messageHeader6  = 4
	ianaHeader      = 12
	iataHeader      = 4
	iaAddrHeader    = 24
	statusHeaderLen = 2
)

// Status codes (RFC 8415 section 21.13).
const (
	statusSuccess       = 0
	statusNoAddrsAvail  = 2
	statusNoBinding     = 3
	statusNotOnLink     = 4
	statusNoPrefixAvail = 6
)

// Limits of a client's message.
const (
	// minDUID and maxDUID are sizes in bytes (RFC 8415 section 11.1).
	minDUID, maxDUID = 3, 130
	// maxIA is how many identity associations are looked at. A client has one a
	// kind for each interface.
	maxIA = 4
	// maxIAAddr is how many addresses in each.
	maxIAAddr = 4
)

// ia is an identity association of a message.
type ia struct {
	kind uint16 // optIANA, optIATA or optIAPD
	id   [4]byte
	// addrs are the addresses inside; empty for a prefix delegation.
	addrs []netip.Addr
}

// message6 is what the server needs to know of a client's message. Slices alias it.
type message6 struct {
	kind        uint8
	xid         [3]byte
	client      []byte // DUID, nil if absent
	server      []byte // DUID, nil if absent
	ias         []ia
	rapidCommit bool
}

// parse6 reads a client's message. It is not ok when an option reaches beyond its
// container, an identifier has a wrong size, or the message was relayed.
func parse6(b []byte) (m message6, ok bool) {
	if len(b) < messageHeader6 {
		return message6{}, false
	}
	m = message6{kind: b[0], xid: [3]byte(b[1:4])}
	if m.kind > inform6 { // relay messages have another layout
		return message6{}, false
	}
	ok = walk6(b[messageHeader6:], m.option)
	return m, ok
}

func (m *message6) option(code uint16, v []byte) bool {
	switch code {
	case optClientID6:
		m.client = v
		return len(v) >= minDUID && len(v) <= maxDUID
	case optServerID6:
		m.server = v
		return len(v) >= minDUID && len(v) <= maxDUID
	case optRapidCommit:
		m.rapidCommit = true
	case optIANA, optIATA, optIAPD:
		return m.association(code, v)
	}
	return true
}

func (m *message6) association(code uint16, v []byte) bool {
	header := ianaHeader
	if code == optIATA {
		header = iataHeader
	}
	if len(v) < header {
		return false
	}
	if len(m.ias) == maxIA {
		return true
	}
	a := ia{kind: code, id: [4]byte(v)}
	ok := walk6(v[header:], func(code uint16, v []byte) bool {
		if code != optIAAddr {
			return true
		}
		if len(v) < iaAddrHeader {
			return false
		}
		if len(a.addrs) < maxIAAddr && a.kind != optIAPD {
			a.addrs = append(a.addrs, netip.AddrFrom16([16]byte(v)))
		}
		return true
	})
	m.ias = append(m.ias, a)
	return ok
}

// walk6 calls f for each option. It returns false when one reaches beyond b or f
// returns false.
func walk6(b []byte, f func(code uint16, v []byte) bool) bool {
	for len(b) > 0 {
		if len(b) < optHeader6 {
			return false
		}
		length := int(binary.BigEndian.Uint16(b[2:]))
		if len(b) < optHeader6+length || !f(binary.BigEndian.Uint16(b), b[optHeader6:optHeader6+length]) {
			return false
		}
		b = b[optHeader6+length:]
	}
	return true
}

// appendOption6 appends an option.
func appendOption6(b []byte, code uint16, v []byte) []byte {
	b = binary.BigEndian.AppendUint16(b, code)
	b = binary.BigEndian.AppendUint16(b, uint16(len(v)))
	return append(b, v...)
}

func appendStatus6(b []byte, status uint16) []byte {
	return appendOption6(b, optStatus, binary.BigEndian.AppendUint16(make([]byte, 0, statusHeaderLen), status))
}
