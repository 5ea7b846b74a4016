// Package netplan says which address plays which part on a virtual network.
//
// The plan is fixed when an instance starts and never follows the host: the
// host may roam between networks while the container keeps its addresses. The
// offsets are those of slirp4netns, which callers have learnt by heart:
// gateway N+2, name server N+3, container N+100, where N is the network's
// address.
package netplan

import (
	"fmt"
	"net/netip"
)

// Offsets of the well-known addresses from the network address.
const (
	gatewayOffset   = 2
	resolverOffset  = 3
	containerOffset = 100
	poolFirstOffset = 15
	poolLastOffset  = 30
)

// DefaultV4 and DefaultV6 are the networks used when the user names none.
var (
	DefaultV4 = netip.MustParsePrefix("10.0.2.0/24")
	DefaultV6 = netip.MustParsePrefix("fd00::/64")
)

// Family is the plan of one address family. The zero value means that the
// family is off.
type Family struct {
	// Prefix is the network, masked.
	Prefix netip.Prefix
	// Gateway is the next hop of the default route; answered by the engine.
	Gateway netip.Addr
	// Resolver is where the engine answers DNS.
	Resolver netip.Addr
	// Container is the container's own (first) address.
	Container netip.Addr
}

// On reports whether the family is in use.
func (f Family) On() bool { return f.Prefix.IsValid() }

// Pool returns the first and last address that DHCP leases to hosts other than
// the one with the container's own address. Both are invalid when the family is off.
func (f Family) Pool() (first, last netip.Addr) {
	if !f.On() {
		return netip.Addr{}, netip.Addr{}
	}
	return offset(f.Prefix.Addr(), poolFirstOffset), offset(f.Prefix.Addr(), poolLastOffset)
}

// CheckPool reports what is wrong with first to last as addresses to lease: they must
// be hosts' addresses of the network, in this order, and none that the engine answers
// for. Both invalid is right.
func (f Family) CheckPool(first, last netip.Addr) error {
	if !first.IsValid() && !last.IsValid() {
		return nil
	}
	wrong := ""
	switch {
	case !f.On():
		wrong = "the family is off"
	case !f.Prefix.Contains(first) || !f.Prefix.Contains(last):
		wrong = "they are not of the network " + f.Prefix.String()
	case last.Less(first):
		wrong = "the last one comes before the first"
	case first == f.Prefix.Addr(), !f.Prefix.Contains(last.Next()):
		wrong = "the network's first and last address are no host's"
	case within(f.Gateway, first, last), within(f.Resolver, first, last):
		wrong = fmt.Sprintf("%s and %s are taken", f.Gateway, f.Resolver)
	}
	if wrong != "" {
		return fmt.Errorf("lease addresses %s to %s: %s", first, last, wrong)
	}
	return nil
}

func within(a, first, last netip.Addr) bool { return !a.Less(first) && !last.Less(a) }

// Owned reports whether addr is one that the engine itself answers for.
func (f Family) Owned(addr netip.Addr) bool {
	return f.On() && (addr == f.Gateway || addr == f.Resolver)
}

// Plan is the address plan of one instance.
type Plan struct {
	V4, V6 Family
}

// Default returns the plan of DefaultV4 and DefaultV6.
func Default() Plan {
	v4, _ := NewFamily(DefaultV4)
	v6, _ := NewFamily(DefaultV6)
	return Plan{V4: v4, V6: v6}
}

// Of returns the family plan that addr belongs to by its version.
func (p Plan) Of(addr netip.Addr) Family {
	if addr.Is4() {
		return p.V4
	}
	return p.V6
}

// Owned reports whether addr is a gateway or resolver address of the plan.
func (p Plan) Owned(addr netip.Addr) bool { return p.Of(addr).Owned(addr) }

// NewFamily plans a network. The prefix must be a network address with room for
// the well-known addresses: at most /25 for IPv4 (slirp4netns has the same
// limit) and at most /64 for IPv6 (SLAAC needs 64 bits, RFC 4862).
func NewFamily(p netip.Prefix) (Family, error) {
	if !p.IsValid() {
		return Family{}, fmt.Errorf("plan network %s: not a CIDR prefix", p)
	}
	if p.Addr().Is4In6() || p.Addr().Zone() != "" {
		return Family{}, fmt.Errorf("plan network %s: v4-mapped and zoned prefixes are not allowed", p)
	}
	if p != p.Masked() {
		return Family{}, fmt.Errorf("plan network %s: host bits set, use %s", p, p.Masked())
	}
	limit := 64
	if p.Addr().Is4() {
		limit = 25
	}
	if p.Bits() > limit || p.Bits() == 0 {
		return Family{}, fmt.Errorf("plan network %s: prefix length must be 1 to %d", p, limit)
	}
	if a := p.Addr(); a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() || a.IsUnspecified() {
		return Family{}, fmt.Errorf("plan network %s: loopback, link-local, multicast and unspecified networks are not allowed", p)
	}
	n := p.Addr()
	return Family{
		Prefix:    p,
		Gateway:   offset(n, gatewayOffset),
		Resolver:  offset(n, resolverOffset),
		Container: containerAddr(n),
	}, nil
}

// containerAddr is N+100 as the field writes it: decimal 100 for IPv4, and the
// digits 100 (0x100) for IPv6, fd00::100.
func containerAddr(n netip.Addr) netip.Addr {
	if n.Is4() {
		return offset(n, containerOffset)
	}
	return offset(n, 0x100)
}

// offset adds n to the last two bytes of a network address. Networks have at
// least seven host bits, so the sum never carries past them for the offsets used.
func offset(a netip.Addr, n uint16) netip.Addr {
	if a.Is4() {
		b := a.As4()
		addTo(b[:], n)
		return netip.AddrFrom4(b)
	}
	b := a.As16()
	addTo(b[:], n)
	return netip.AddrFrom16(b)
}

func addTo(b []byte, n uint16) {
	i := len(b) - 1
	sum := uint32(b[i-1])<<8 + uint32(b[i]) + uint32(n)
	b[i], b[i-1] = byte(sum), byte(sum>>8)
}
