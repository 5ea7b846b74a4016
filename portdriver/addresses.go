package portdriver

import "net/netip"

// Addresses is who has which address on the container's network. A family that is
// off has the zero Addr for both.
type Addresses struct {
	Container4, Gateway4 netip.Addr
	Container6, Gateway6 netip.Addr
	// Network4 and Network6 are set where replies leave by the container's interface:
	// it would look for clients with addresses of these networks on its own link, so
	// they show the gateway's address. The host's LAN may well be 10.0.2.0/24 too.
	Network4, Network6 netip.Prefix
}

// Route is how one client is taken to the container: the address that it shows
// there, and where it is taken.
type Route struct {
	Source, Target netip.AddrPort
}

// Routes returns the ways to take a client of these listeners to the container, the
// best first; the next one is for when the target of the one before refuses. There
// is none if the container has no address that the target could mean, or there is
// none of the target's family to show.
//
// The source is the client's own address, with these exceptions. A client on the
// host's loopback, and one of a unix socket (the zero AddrPort), shows the gateway's
// address, or the loopback address of the target's family if the target is the
// container's loopback: an address of 127.0.0.0/8 means another machine there. A
// link-local address, whose zone the container does not have, an address of the
// other family and one that the virtual network itself uses are replaced by the
// gateway's. The port is always the client's.
func (a Addresses) Routes(client netip.AddrPort, target netip.AddrPort) []Route {
	from := netip.AddrPortFrom(client.Addr().Unmap(), client.Port())
	addrs := []netip.Addr{a.Container4, a.Container6}
	if from.Addr().Is6() {
		addrs[0], addrs[1] = addrs[1], addrs[0]
	}
	if target.Addr().IsValid() {
		addrs = []netip.Addr{target.Addr()}
	}
	var routes []Route
	for _, addr := range addrs {
		if source := a.source(from, addr); addr.IsValid() && source.IsValid() {
			routes = append(routes, Route{source, netip.AddrPortFrom(addr, target.Port())})
		}
	}
	return routes
}

// source is what a client shows to a target.
func (a Addresses) source(client netip.AddrPort, target netip.Addr) netip.AddrPort {
	addr := client.Addr().WithZone("")
	gateway, loopback := a.Gateway4, netip.AddrFrom4([4]byte{127, 0, 0, 1})
	if target.Is6() {
		gateway, loopback = a.Gateway6, netip.IPv6Loopback()
	}
	switch {
	case target.IsLoopback() && (addr.IsLoopback() || !addr.IsValid()):
		addr = loopback
	case !a.presentable(addr) || addr.Is4() != target.Is4():
		addr = gateway
	}
	return netip.AddrPortFrom(addr, client.Port())
}

// presentable reports whether the container can be shown a client's address.
func (a Addresses) presentable(addr netip.Addr) bool {
	if a.Network4.Contains(addr) || a.Network6.Contains(addr) {
		return false
	}
	return addr.IsValid() && !addr.IsLoopback() && !addr.IsLinkLocalUnicast() && !addr.IsUnspecified() &&
		!addr.IsMulticast() && addr != a.Container4 && addr != a.Container6 && addr != a.Gateway4 && addr != a.Gateway6
}
