// Package dhcp answers DHCPv4 (RFC 2131, 2132) and DHCPv6 (RFC 8415) clients on
// a network whose addresses are planned: there is one client that matters, whose
// address is known before it asks, and a few that may live behind it on a nested
// bridge.
//
// Server4 and Server6 are values without sockets, clocks and goroutines: message
// in, message out, time passed in. They are not safe for concurrent use. Both
// write with an own encoder, which knows the room that is left before it appends:
// an option that does not fit is left out, in an order of importance, and nothing
// is ever written first and measured later.
//
// The host with the known Ethernet address always gets the container's address,
// whatever it asks for and whatever its client identifier, because published
// ports lead to that address. Others share a small pool (DHCPv4), or are told
// that there are no addresses (DHCPv6; they have SLAAC). When the pool is used
// up, a client stays without an answer and Refused counts it; the known host
// cannot lose its address to a flood.
//
// A Server4 that knows of no container's address gives everybody one of the pool,
// which then depends on the hardware address alone: that is what slirp4netns's
// callers expect.
//
// A restarted server has forgotten its leases. It is the only one on its network,
// so it grants a client that comes back what the client says it had, if that is
// free, instead of staying silent (RFC 2131 section 4.3.2).
//
// Relayed messages and BOOTP without a message type are ignored. Hosts that share
// the known Ethernet address (ipvlan) share its address; they need static ones.
package dhcp
