// Package hostsock has the datagram sockets of the host: those that the engine
// opens, UDP sockets and ping sockets (SOCK_DGRAM with IPPROTO_ICMP), both
// unconnected, non-blocking and with an error queue, and UDP sockets that it is
// handed for published ports (Adopt). The latter tell which of the host's addresses
// a datagram was sent to, and have no error queue. Two further kinds belong to a
// container's network namespace: the inner socket of a flow (Join), and the one that
// gets what no such socket takes (Intercept).
//
// A Socket is sent on through a Writer and received from by a Poller, which
// hands what comes to the socket's Handler. A Poller serves any number of
// sockets with one goroutine and one buffer: it waits, in Go's own poller, for
// an epoll instance in which all its sockets are registered. A goroutine for
// each socket would need no epoll of its own, but Close could then not release a
// descriptor before that goroutine has run, and the number of descriptors in use
// would not be bounded when a container runs through ports faster than they are
// closed. Go's poller also refuses reads on a descriptor that reported nothing
// but an error, which is what an error queue does while the send buffer is full.
//
// Errors. IP_RECVERR makes the kernel queue ICMP errors with the destination
// that they are about (ip(7)). The same error is also reported once by the next
// call on the socket, whatever that call is about; sends therefore repeat a
// failed call, and receivers ignore such errors. No error ends a socket.
//
// Batches. A busy socket is received from with recvmmsg, into slots that lie one behind
// the other and have the size of the datagrams before; equal datagrams come out in one
// piece and are handed over like a batch of the kernel's. How many are asked for follows
// what comes. When several came in a turn, the next turn waits a moment for more.
//
// Offloads. A batch of equal datagrams is one sendmsg with UDP_SEGMENT and comes
// back as one recvmsg with UDP_GRO (udp(7)). Where a path cannot segment, the
// Writer falls back to sendmmsg, and remembers it with the socket.
package hostsock
