package hostsock

import (
	"encoding/binary"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/proto/icmp"
	"github.com/postern-net/postern/stack/internal/hosterr"
)

// Report is an entry of a socket's error queue: what became of a packet that was
// sent earlier. Payload is valid only during the call that it is passed to.
type Report struct {
	// Target is where the packet was sent to. A ping socket's port is 0.
	Target netip.AddrPort
	// Offender is who complained; invalid if the host itself did.
	Offender netip.Addr
	// Kind is what happened, 0 if the container need not know.
	Kind icmp.Kind
	// MTU in bytes comes with icmp.FragmentationNeeded.
	MTU uint32
	// Payload is what is known of the packet: for UDP what follows the UDP
	// header, for a ping socket the ICMP message. It is often cut short.
	Payload []byte
}

// Layout of struct sock_extended_err in bytes (ip(7), IP_RECVERR): errno, origin,
// type, code, a pad, info and data; the offender's address follows.
const (
	extendedErrLen = 16
	originAt       = 4
	typeAt         = 5
	codeAt         = 6
	infoAt         = 8
)

// parseReport reads the control messages of an error queue entry. Without one
// that it knows the Kind is 0.
func parseReport(control []byte) Report {
	for len(control) >= unix.CmsgLen(0) {
		h, data, rest, err := unix.ParseOneSocketControlMessage(control)
		if err != nil {
			break
		}
		v4 := h.Level == unix.IPPROTO_IP && h.Type == unix.IP_RECVERR
		v6 := h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_RECVERR
		if (v4 || v6) && len(data) >= extendedErrLen {
			return parseExtended(data)
		}
		control = rest
	}
	return Report{}
}

func parseExtended(data []byte) Report {
	origin, info := data[originAt], binary.NativeEndian.Uint32(data[infoAt:])
	var r Report
	switch origin {
	case unix.SO_EE_ORIGIN_ICMP, unix.SO_EE_ORIGIN_ICMP6:
		if kind, ok := icmp.KindOf(origin == unix.SO_EE_ORIGIN_ICMP6, data[typeAt], data[codeAt]); ok {
			r.Kind = kind
		}
		r.Offender = offender(data[extendedErrLen:])
	case unix.SO_EE_ORIGIN_LOCAL:
		r.Kind = hosterr.Of(syscall.Errno(binary.NativeEndian.Uint32(data))).Kind
	}
	if r.Kind == icmp.FragmentationNeeded {
		r.MTU = info
	}
	return r
}

// offender reads the struct sockaddr_in or sockaddr_in6 after the error.
func offender(b []byte) netip.Addr {
	if len(b) < 2 {
		return netip.Addr{}
	}
	switch family := binary.NativeEndian.Uint16(b); {
	case family == unix.AF_INET && len(b) >= 8:
		return netip.AddrFrom4([4]byte(b[4:8]))
	case family == unix.AF_INET6 && len(b) >= 24:
		return netip.AddrFrom16([16]byte(b[8:24])).Unmap()
	}
	return netip.Addr{}
}
