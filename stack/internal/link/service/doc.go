// Package service answers what a container asks of its own link, before a packet
// reaches netstack: who has the gateway's address (ARP, neighbour discovery),
// which network is this (router advertisements, DHCPv4, DHCPv6), and is the
// gateway alive (echo).
//
// The engine's Ethernet address and the container's are fixed, so there is no
// neighbour cache and nothing to learn. What the container says about addresses,
// routes and servers changes nothing: advertisements and redirects from it end
// here. Requests are answered for the addresses of the plan that the engine owns
// and no others, so that the container's own duplicate address detection and a
// DHCP client's probes find their address free.
//
//	frame ─▶ ARP?                         ─▶ answer ─▶ handled
//	      ─▶ IPv4: IGMP, DHCP, echo to us ─▶ answer ─▶ handled
//	      ─▶ IPv6: ND, MLD, DHCP, echo    ─▶ answer ─▶ handled
//	      └▶ anything else, malformed IP packets too ─▶ not handled
//
// Frames in, frames out: no device, no goroutine, no clock. A frame that is not
// for this package costs a look at its headers and no allocation.
//
// The engine answers as one node: the router, with one Ethernet address for the
// gateway, the resolver and the link-local address GatewayLinkLocal, from which
// its advertisements come.
//
// Checksums are verified for IPv4 headers, neighbour discovery and echo, which a
// kernel always fills in. That of a UDP datagram is not: a container's kernel
// leaves it to the device, and only the link knows.
package service
