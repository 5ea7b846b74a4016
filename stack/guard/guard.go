// Package guard is the one decision "may the container reach this address".
//
// Decide is asked with the final address, right before every connect and every
// send, whatever the way that the packet came: a kernel socket of the container
// or a raw frame. It is a pure function of its arguments; names are resolved
// long before it, so that a name that turns into 127.0.0.1 changes nothing.
//
// Everything is allowed but addresses that mean "this host", "this link", "many
// hosts" or the virtual network itself, and the cloud metadata services, which
// hand out credentials to whoever asks from the host. IPv6 has many spellings of
// an IPv4 address; each is judged by the IPv4 address that it carries, because a
// translator or tunnel on the host would deliver it there.
//
// The host's own addresses other than loopback, and private networks, are
// allowed: a container reaches what an ordinary process of the same user reaches
// over the network, and no more than the network would let through.
package guard

import (
	"net/netip"
	"slices"

	"github.com/postern-net/postern/stack/netplan"
)

// Proto is the protocol of an attempt.
type Proto uint8

// The protocols that the guard decides on.
const (
	TCP Proto = iota
	UDP
	ICMP
)

// Policy is what the guard decides by. It must not change while in use. The
// zero value, whose plan has no family, refuses everything.
type Policy struct {
	Plan netplan.Plan
	// HostLoopback opens the gateway addresses as an alias of the host's loopback.
	HostLoopback bool
	// HostLoopbackPorts limits HostLoopback to some ports; empty means all.
	HostLoopbackPorts []uint16
}

// Verdict is the guard's answer.
type Verdict struct {
	// Dial is the address to connect or send to; valid only if Reason is "".
	Dial netip.AddrPort
	// Reason says why not, empty if allowed. It is one of the Reason constants.
	Reason string
}

// Allowed reports whether the attempt may go on, to Dial.
func (v Verdict) Allowed() bool { return v.Reason == "" }

// Reasons of a refusal. They are stable: counters and logs are keyed by them.
const (
	ReasonInvalid      = "invalid address"
	ReasonZone         = "zone"
	ReasonPortZero     = "port zero"
	ReasonFamilyOff    = "address family off"
	ReasonHostLoopback = "host loopback"
	ReasonUnspecified  = "unspecified"
	ReasonLinkLocal    = "link-local"
	ReasonSiteLocal    = "site-local"
	ReasonMetadata     = "metadata"
	ReasonMulticast    = "multicast"
	ReasonBroadcast    = "broadcast"
	ReasonReserved     = "reserved"
	ReasonMapped       = "v4-mapped"
	ReasonOwnSubnet    = "own subnet"
	ReasonGateway      = "gateway"
	ReasonResolver     = "resolver"
	ReasonNetwork      = "network address"
	ReasonForeign      = "foreign source"
)

// Decide says whether the container may reach target, and which address to use
// for it. For ICMP the port is meaningless and ignored.
func (p Policy) Decide(proto Proto, target netip.AddrPort) Verdict {
	if proto != ICMP && target.Port() == 0 {
		return Verdict{Reason: ReasonPortZero}
	}
	addr := target.Addr()
	if p.Plan.Owned(addr) {
		return p.decideOwned(proto, target)
	}
	if reason := p.refuse(addr); reason != "" {
		return Verdict{Reason: reason}
	}
	return Verdict{Dial: target}
}

// decideOwned answers for the addresses that the engine itself holds. Echo
// requests to them are answered on the link and never get here to be sent.
func (p Policy) decideOwned(proto Proto, target netip.AddrPort) Verdict {
	addr := target.Addr()
	if addr != p.Plan.Of(addr).Gateway {
		return Verdict{Reason: ReasonResolver}
	}
	if !p.HostLoopback || proto == ICMP {
		return Verdict{Reason: ReasonGateway}
	}
	if len(p.HostLoopbackPorts) > 0 && !slices.Contains(p.HostLoopbackPorts, target.Port()) {
		return Verdict{Reason: ReasonGateway}
	}
	return Verdict{Dial: netip.AddrPortFrom(Loopback(addr), target.Port())}
}

// Loopback returns the host's loopback address of addr's family.
func Loopback(addr netip.Addr) netip.Addr {
	if addr.Is4() {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return netip.IPv6Loopback()
}

// refuse returns why addr, which is not one of the engine's own, must not be
// reached, or "".
func (p Policy) refuse(addr netip.Addr) string {
	switch {
	case !addr.IsValid():
		return ReasonInvalid
	case addr.Zone() != "":
		return ReasonZone
	case addr.Is4In6():
		// On the wire such an address is never right; sockets would unmap it.
		if r := p.refuse4(addr.Unmap()); r != "" {
			return r
		}
		return ReasonMapped
	case !p.Plan.Of(addr).On():
		return ReasonFamilyOff
	case addr.Is4():
		return p.refuse4(addr)
	}
	return p.refuse6(addr)
}

// ownPrefix judges addresses within the virtual network: nobody is there but
// the container, whose own kernel keeps traffic to itself.
func (p Policy) ownPrefix(addr netip.Addr) string {
	prefix := p.Plan.Of(addr).Prefix
	if !prefix.IsValid() || !prefix.Contains(addr) {
		return ""
	}
	if addr.Is4() && addr == lastAddr(prefix) {
		return ReasonBroadcast
	}
	return ReasonOwnSubnet
}

// Source returns why a frame from the container must not carry addr as its
// source when it is to be forwarded, or "". Link-local sources are valid on the
// link only, for the services that are answered there.
func (p Policy) Source(addr netip.Addr) string {
	switch {
	case !addr.IsValid():
		return ReasonInvalid
	case addr.Zone() != "":
		return ReasonZone
	case addr.Is4In6():
		return ReasonMapped
	}
	fam := p.Plan.Of(addr)
	switch {
	case !fam.On():
		return ReasonFamilyOff
	case !fam.Prefix.Contains(addr):
		return ReasonForeign
	case addr == fam.Prefix.Addr():
		// Network address (RFC 1122 3.2.1.3), subnet-router anycast (RFC 4291 2.6.1).
		return ReasonNetwork
	case addr == fam.Gateway:
		return ReasonGateway
	case addr == fam.Resolver:
		return ReasonResolver
	case addr.Is4() && addr == lastAddr(fam.Prefix):
		return ReasonBroadcast
	}
	return ""
}

// lastAddr returns the highest address of an IPv4 prefix: its broadcast address.
func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(b)
}
