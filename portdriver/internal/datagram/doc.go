// Package datagram is the host's side of published UDP ports, whichever way leads
// to the container.
//
// Flows. A flow is one client of one listener: the client's address and port and
// the host's address that it sent to, since a reply must come from there. Each flow
// has a route, the source that the container sees and the target; no two flows have
// the same, so that the route tells whose a reply is. Where two clients would show
// the same source, such as 127.0.0.1:5555 and [::1]:5555 behind the gateway's
// address, the second one gets another port.
//
// Way in. One goroutine receives for all listeners (see package hostsock) and hands
// datagrams to the flow's Way. Datagrams of one size that follow each other on one
// flow are collected and go as one train, once what waited has been read. Nothing is
// held for a flow but its entry in the table: no goroutine, descriptor or buffer.
//
// Way back. Replies collects in the same manner, for the goroutine that receives
// from the container, and sends each train with one system call. Errors of a reply
// are about that client and end nothing.
//
// Limits. There are at most Config.Max flows. When they are used up one gives way,
// and which one is decided by clients, not by flows, so that sixty thousand ports of
// one client cost that client its own flows: see (*table).victim. A client is an
// IPv4 address or, as one host has all of it, an IPv6 /64. Flows end after Idle, or
// after IdleUnreplied if the container never answered.
package datagram
