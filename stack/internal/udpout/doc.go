// Package udpout carries the container's datagrams to the outside and back, by
// sockets of the host.
//
// Mapping. Every address and port of the container that sends gets one socket of
// its family, whatever it sends to: endpoint-independent mapping (RFC 4787
// REQ-1), with the same port where it is free and unprivileged. The socket is
// unconnected and bound to the wildcard or to the outbound address, so the host
// may change networks at any time. Filtering is address-dependent (REQ-8): a
// datagram from outside passes only if the container has sent to that address.
//
// Way out. Handle is called by the one goroutine that reads from the container.
// It asks the guard, finds or makes the mapping, and sends without waiting; a
// full socket buffer loses the datagram, as it would on any link. Datagrams of
// one size that follow each other on one flow are collected, up to 64, and leave
// with one system call when something else comes or Flush says that the reader
// has run dry. What the container's kernel has batched itself goes out as it is.
//
// Way in. One goroutine receives for all sockets (see package hostsock) and
// hands each datagram, or train of datagrams, to the Sender. It waits when the
// Sender does.
//
// The gateway address may stand for the host's loopback (guard.Policy). Then,
// and only then, is a mapping's socket used with a loopback address; replies
// from there appear to come from the gateway. A wildcard socket can be sent to
// by every process of the host, so replies also have to come from a port that
// the policy opens.
//
// Errors. What the host side reports, at once or in a socket's error queue,
// becomes an ICMP error that quotes the container's datagram. It never ends a
// mapping. A hop limit below 64 is passed on less one, so traceroute works.
//
// Limits. There are at most flow.MaxUDP mappings. When they are used up, one
// that never had a reply gives way before one that had, and among those the one
// not used for longest: a container that sprays datagrams loses its own sprays.
// A reserve is kept for mappings that were opened towards ports 53 and 853, which
// makes name service outlast a flood. Mappings end after Idle, or after
// IdleUnreplied if they never had a reply.
package udpout
