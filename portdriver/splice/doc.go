// Package splice takes published connections to the container through two kernel
// sockets: the one that the host's listener accepted, and one that was made in the
// container's network namespace and came out of the stock. The relay moves bytes
// between them with splice(2).
//
//	client ─▶ listener ─accept─▶ admission ─▶ routes ─▶ stock ─▶ bind to the client's address
//	                                                              connect to the server
//	client ◀────────────────── relay ───────────────────────────▶ server
//
// # Threads
//
// A listener is watched by one loop of the relay. A connection has a loop too, the
// same one unless another has fewer by some, and everything about it happens on that
// loop's thread, from its first step to its last byte: no step of it asks another
// process. Between network namespaces there is no wire, so the server's kernel has
// usually answered before connect(2) returns; only a full backlog makes a connection
// wait (pending). Paths are looked up by goroutines: a file system may keep them
// waiting, and the container's may be in the hands of its root.
//
// # The client's address
//
// The socket is bound to the address that portdriver.Addresses chose, which needs no
// privilege because it was made transparent. A port that is taken there is replaced
// by any other one, an address that cannot be had by the gateway's.
//
// # Sockets are used again
//
// To make a socket in the container's netns and to bring it here costs more than to
// connect it. So a socket whose connection has ended on both sides, with nothing left
// in it, is disconnected and goes back into the stock (relay.Splice.Keep). That works
// only if it was not bound to its port by number; see ports for how it gets the
// client's port all the same. Where the kernel cannot do that (before Linux 6.3, ports
// outside net.ipv4.ip_local_port_range, ports that someone in there has bound by number)
// it is bound by number and closed after use.
//
// # Fewer segments
//
// A client is connected to its server after the flows that are ready have had their
// turn. If it has sent something by then, that goes along with the handshake's last
// segment, and its server is woken once and not twice. One that waits for its server to
// speak first loses nothing by it.
//
// # Refusals
//
// The kernel has completed the client's handshake before we know of it. So a
// connection that cannot be taken on is reset: that is the nearest thing to a
// refusal, while an end of stream would look like an empty answer.
//
// # Shortage
//
// An accept loop never ends by itself. When places, descriptors or memory have run
// out it pauses, and clients wait in the kernel's backlog; it goes on when a
// connection ends, and after portdriver.AcceptPause in any case. Descriptors of
// sockets in stock are given back first. When the stock is empty, accepted clients
// wait in a queue until sockets come, but not for long.
package splice
