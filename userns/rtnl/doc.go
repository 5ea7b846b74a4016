// Package rtnl configures interfaces, addresses, routes and rules through an rtnetlink
// socket that somebody else made (rtnetlink(7)), so that it works on a network
// namespace that we are not in.
//
// Every operation is one request and its answer: encode (message.go), exchange
// (exchange.go), decode (decode.go). Encoding and decoding are pure. A socket
// serves one operation at a time; two goroutines must not share one.
//
// Errors name the operation and its object and wrap the errno, with the kernel's
// own words where it has some (NETLINK_EXT_ACK):
//
//	add address 10.0.2.100/24 to tap0: permission denied
package rtnl
