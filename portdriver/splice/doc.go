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
