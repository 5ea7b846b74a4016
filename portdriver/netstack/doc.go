// Package netstack publishes ports by way of the container's virtual interface: the
// engine plays the client, with the client's own address, and what the container
// sees are frames.
//
//	client ── host socket ── TCP: accept ─ DialTCP ── relay ─┐
//	                         UDP: datagrams ──────── SendUDP ┴ engine ── TAP ── server
//
// Nothing is needed in the container's network namespace. In return every byte
// passes through this process, and servers that listen on the container's loopback
// only are out of reach: the container's kernel drops frames to 127.0.0.0/8 and ::1
// (RFC 1122 section 3.2.1.3 (g)). It is the driver of UDP, and of TCP where sockets of
// that namespace, which package splice works with, cannot be had.
//
// # TCP
//
// Each listener has a goroutine that accepts and never ends but by Shut and Close.
// When descriptors or memory run out it rests and tries again; when too many
// connections exist or wait for the container (package admission), it holds the one
// that it has accepted, and the others wait in the kernel. Each connection has a
// goroutine, and the relay a second one.
//
// The container is asked before a byte of the client is read, by the routes of
// portdriver.Addresses in their order. If none leads anywhere the client is reset, as
// it would have been by the server's kernel, only a little later.
package netstack
