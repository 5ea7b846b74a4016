package hostsock

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Message is what one receive brought. Payload is valid only during the call
// that it is passed to.
type Message struct {
	From netip.AddrPort
	// Local is the host's address that the message was sent to, and Interface the
	// index of the interface by which it came; both are set for adopted sockets
	// only. For a group or broadcast Local is what a reply may come from: the
	// interface's address over IPv4, the zero Addr over IPv6, where there is none.
	Local     netip.Addr
	Interface int
	// Target is where the message was sent to; set for sockets of Intercept only.
	Target netip.AddrPort
	// TTL is the hop limit as received; set for sockets of Join and Intercept only.
	TTL     uint8
	Payload []byte
	// Segment is 0 if Payload is one datagram. Otherwise Payload holds several of
	// Segment bytes each, the last possibly shorter.
	Segment int
}

// likewise reports whether all but the payload is the same.
func (m *Message) likewise(o Message) bool {
	return m.From == o.From && m.TTL == o.TTL && m.Target == o.Target && m.Local == o.Local && m.Interface == o.Interface
}

// Layout of struct in_pktinfo (ip(7)) and of struct in6_pktinfo (ipv6(7)) in
// bytes: IPv4 has the index, the local address and the header's destination, IPv6
// the destination and the index.
const (
	pktinfo4Len     = 12
	pktinfo4LocalAt = 4
	pktinfo6Len     = 20
	pktinfo6IndexAt = 16
)

// readControl takes what a Message tells from control messages. What it does not
// know it passes over.
func (m *Message) readControl(control []byte) {
	for len(control) >= unix.CmsgLen(0) {
		h, data, rest, err := unix.ParseOneSocketControlMessage(control)
		if err != nil {
			return
		}
		switch h.Level {
		case unix.IPPROTO_UDP:
			if h.Type == unix.UDP_GRO && len(data) >= 4 {
				m.Segment = max(0, int(int32(binary.NativeEndian.Uint32(data))))
			}
		case unix.IPPROTO_IP:
			m.readControl4(h.Type, data)
		case unix.IPPROTO_IPV6:
			m.readControl6(h.Type, data)
		}
		control = rest
	}
}

func (m *Message) readControl4(typ int32, data []byte) {
	switch {
	case typ == unix.IP_TTL && len(data) >= 4:
		m.TTL = uint8(binary.NativeEndian.Uint32(data))
	case typ == unix.IP_PKTINFO && len(data) >= pktinfo4Len:
		m.Interface = int(binary.NativeEndian.Uint32(data))
		m.Local = netip.AddrFrom4([4]byte(data[pktinfo4LocalAt:]))
	case typ == unix.IP_ORIGDSTADDR && len(data) >= unix.SizeofSockaddrInet4:
		// struct sockaddr_in: family, port, address.
		m.Target = netip.AddrPortFrom(netip.AddrFrom4([4]byte(data[4:])), binary.BigEndian.Uint16(data[2:]))
	}
}

func (m *Message) readControl6(typ int32, data []byte) {
	switch {
	case typ == unix.IPV6_HOPLIMIT && len(data) >= 4:
		m.TTL = uint8(binary.NativeEndian.Uint32(data))
	case typ == unix.IPV6_PKTINFO && len(data) >= pktinfo6Len:
		m.Interface = int(binary.NativeEndian.Uint32(data[pktinfo6IndexAt:]))
		if a := netip.AddrFrom16([16]byte(data)); !a.IsMulticast() {
			m.Local = a
		}
	case typ == unix.IPV6_ORIGDSTADDR && len(data) >= unix.SizeofSockaddrInet6:
		// struct sockaddr_in6: family, port, flow, address, scope.
		m.Target = netip.AddrPortFrom(netip.AddrFrom16([16]byte(data[8:])), binary.BigEndian.Uint16(data[2:]))
	}
}
