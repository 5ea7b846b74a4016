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
// Express. With Config.Express a flow that keeps talking moves over to a socket of
// the container's own network namespace: the inner side of a pair, whose outer side is
// the mapping's socket as before. It is bound to the remote as the container knows it
// and connected to the container's address and port, so the container's kernel takes
// it for the remote. (What makes the kernel do so is set up elsewhere; the packages
// userns/express and stack describe it.) The datagrams then no longer cross the device:
//
//	container ─▶ C:p→R:q ═lo═▶ inner socket ─▶ guard ─▶ mapping's socket ─▶ R:q
//	container ◀─ C:p←R:q ◀═lo═ inner socket ◀─ filter ◀─ mapping's socket ◀─ R:q
//
// Which flow moves is decided by counting both directions (see busy). If the container's
// datagram decides, it is written back to the container: its kernel hands it to the new
// socket and remembers the flow. If one from outside decides, and the container has been
// silent, it is sent by the socket, which has the same effect. Mapping, filter and guard
// are those of the universal path, as are the limits, the counters and what becomes of
// errors: the host's are told by the device, the container's concern nobody.
//
// Order. When a datagram k is written back, k+1 to k+n may have left by the device
// already, and what follows goes to the pair's socket, which another goroutine empties.
// So the reader takes k from the socket at once and sends it, then k+1 to k+n as they
// come; until it has run dry, what follows is kept back (see sequence). On the way in
// one goroutine decides for each datagram, and the kernel delivers either way within the
// call. A datagram can be overtaken only by one that is sent while the kernel has it
// between our rules and the device's queue; or when a pair is closed although it is
// busy, because descriptors have run out.
//
// A pair ends after pairIdle, with its mapping, or when there are too many and it was
// not used for longest. Its socket is parted from the container first, then emptied,
// then closed. From then on the kernel, which remembers the flow for some time, hands
// its datagrams to the socket for strays. They go the universal way, and if the flow
// keeps talking it moves over again. Nothing is lost on the way out.
//
// Nothing relies on what the container's root may change. If the datagram that was
// written back does not arrive, and the next come by the device again, the flow stays
// on the universal path; after several such flows no more are tried for a while.
//
// A second goroutine receives for the inner sockets: out and in do not wait for each
// other.
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
