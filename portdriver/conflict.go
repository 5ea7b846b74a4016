package portdriver

import (
	"net/netip"
	"path"
)

// claim is something that only one rule can have: ports of an address, a path, or
// an inherited listener.
type claim struct {
	network Network
	// inside says that it is in the container.
	inside bool
	// addr and the ports from first to last, for tcp and udp.
	addr        netip.Addr
	first, last uint16
	// name is a path or the name of an inherited listener instead.
	name string
}

// Conflict reports whether two rules cannot be in force at the same time because
// clients could not tell them apart. The meaning counts, not the text: 0.0.0.0 takes
// every IPv4 address and [::] every IPv6 address, but not IPv4 (IPV6_V6ONLY is
// always set); no address is 127.0.0.1 and ::1, as far as the protocol has that
// family. A port that is yet to be chosen conflicts with none.
func Conflict(a, b Spec) bool {
	return overlap(a.normal().claims(), b.normal().claims())
}

func overlap(a, b []claim) bool {
	for _, x := range a {
		for _, y := range b {
			if x.overlaps(y) {
				return true
			}
		}
	}
	return false
}

func (c claim) overlaps(o claim) bool {
	if c.network != o.network || c.inside != o.inside || c.name != o.name {
		return false
	}
	if !c.addr.IsValid() || !o.addr.IsValid() {
		return !c.addr.IsValid() && !o.addr.IsValid()
	}
	return c.first <= o.last && o.first <= c.last && covers(c.addr, o.addr)
}

// covers reports whether one of two addresses includes the other.
func covers(a, b netip.Addr) bool {
	return a == b || a.Is4() == b.Is4() && (a.IsUnspecified() || b.IsUnspecified())
}

// claims is what the spec takes. It does not know which address an inherited
// listener has.
func (s Spec) claims() []claim {
	side := s.listening()
	switch {
	case side.Path != "":
		return []claim{{network: NetUnix, inside: s.Reverse, name: path.Clean(side.Path)}}
	case side.FD != "":
		return []claim{{network: s.network(), name: fdPrefix + side.FD}}
	case side.Port == 0:
		return nil
	}
	var claims []claim
	for _, addr := range s.addrs() {
		claims = append(claims, claim{
			network: s.network(), inside: s.Reverse, addr: addr,
			first: side.Port, last: side.Port + uint16(s.Count-1),
		})
	}
	return claims
}

// listening is the side where clients come.
func (s Spec) listening() Side {
	if s.Reverse {
		return s.Container
	}
	return s.Host
}

// network is the kind of socket on the listening side, if that is no path.
func (s Spec) network() Network {
	if s.Proto.IsUDP() {
		return NetUDP
	}
	return NetTCP
}

// addrs are the addresses to listen on: the one that was given, or the loopback's.
func (s Spec) addrs() []netip.Addr {
	if addr := s.listening().Addr; addr.IsValid() {
		return []netip.Addr{addr}
	}
	loopback4, loopback6 := netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()
	switch s.Proto.Family() {
	case 4:
		return []netip.Addr{loopback4}
	case 6:
		return []netip.Addr{loopback6}
	}
	return []netip.Addr{loopback4, loopback6}
}
