// Package kernudp brings clients of published UDP ports to the container by sockets
// of its network namespace. It serves what a TAP does not reach, servers on the
// container's loopback, and containers whose network is somebody else's.
//
// Each flow has one socket. It was made in the container's namespace beforehand
// (package portdriver/stock), transparent and marked, and is bound here to the
// source that the container is to see and connected to the target:
//
//	client ─▶ listener ─▶ flow ─▶ [203.0.113.5:5555 → 127.0.0.1:53] ─▶ server
//
// The server's answer goes to the client's address, which is no address of the
// namespace. A rule there routes what comes from loopback addresses back into it
// (rtnl.InstallPublishing), where the socket waits. A server that is bound to the
// wildcard address answers from the container's own address instead, by the default
// route; where that ends in the engine's TAP, Published recognizes the answer.
//
// Sockets are few, so there are fewer flows than elsewhere (MaxFlows); which one
// gives way is decided as in package datagram. While the stock is empty a few
// datagrams wait for the next delivery.
package kernudp
