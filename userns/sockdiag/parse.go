package sockdiag

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/userns/rtnl"
)

// Sizes and places in struct inet_diag_req_v2 and struct inet_diag_msg
// (linux/inet_diag.h), whose middle is struct inet_diag_sockid. Ports and addresses
// are in network order, the rest in ours.
const (
	reqLen = 56
	msgLen = 72

	atState  = 1
	atPort   = 4
	atPeer   = 6
	atSource = 8
	atDevice = 40
)

// Attributes (linux/inet_diag.h).
const (
	attrV6Only = 11 // INET_DIAG_SKV6ONLY: one byte
	attrMark   = 15 // INET_DIAG_MARK: four bytes, told to who has CAP_NET_ADMIN
)

// parse reads a message of an answer to q; false for one of another kind, one that
// is too short, and one without a port.
func parse(q query, kind uint16, b []byte) (Socket, bool) {
	if kind != sockDiagByFamily || len(b) < msgLen || b[0] != q.family || q.states&(1<<(b[atState]&31)) == 0 {
		return Socket{}, false
	}
	addr, port, ok := bound(b)
	if !ok {
		return Socket{}, false
	}
	s := Socket{
		UDP:    q.protocol == unix.IPPROTO_UDP,
		Bound:  netip.AddrPortFrom(addr, port),
		Device: binary.NativeEndian.Uint32(b[atDevice:]),
		Dual:   addr == netip.IPv6Unspecified(),
	}
	rtnl.Attributes(b[msgLen:], func(kind uint16, value []byte) {
		switch {
		case kind == attrV6Only && len(value) >= 1:
			s.Dual = s.Dual && value[0] == 0
		case kind == attrMark && len(value) >= 4:
			s.Mark = binary.NativeEndian.Uint32(value)
		}
	})
	return s, true
}

// bound is the address and port of a message of at least msgLen bytes; false if it
// is of no IP family or has no port.
func bound(b []byte) (addr netip.Addr, port uint16, ok bool) {
	switch b[0] {
	case unix.AF_INET:
		addr = netip.AddrFrom4([4]byte(b[atSource:]))
	case unix.AF_INET6:
		addr = netip.AddrFrom16([16]byte(b[atSource:])).Unmap()
	default:
		return netip.Addr{}, 0, false
	}
	port = binary.BigEndian.Uint16(b[atPort:])
	return addr, port, port != 0
}
