// Package icmp reads and writes the ICMP (RFC 792) and ICMPv6 (RFC 4443)
// messages that the engine deals in: echo, and the errors that tell a container
// why its packet went nowhere.
//
// Errors are named by Kind, one list for both families; the tables in kind.go
// are the only place that knows types and codes. BuildError quotes the packet
// that it answers, never a byte more than was received, and MayAnswer keeps the
// rules on when to stay silent. Rates are the sender's business.
package icmp
