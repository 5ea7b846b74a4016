// Package relay moves the bytes of a flow between its two sides. There are two
// relays: one between netstack and a host socket (TCP), one between two sockets of
// the kernel (Loops).
//
// # Between netstack and a host socket
//
// A TCP flow through netstack has a user-space side (Stream) and a host socket.
// Two loops move the bytes, one a direction, and neither copies them in user
// space: outward, the received segments of the Stream are given to writev(2)
// where they lie and dropped as far as the kernel took them; inward, read(2)
// fills the very memory from which the segments will be sent (a small message
// takes a short cut, see hostReader).
//
//	container ─▶ Stream.Peek ─▶ writev(host) ─▶ Stream.Consume
//	container ◀─ Stream.Fill ◀─ read(host)
//
// # Between two sockets
//
// A Loop is a goroutine around an epoll instance. It serves any number of flows, and
// what its users watch besides. An idle flow costs one small object and no
// descriptor, pipe or goroutine beyond its two sockets. Both are registered
// edge-triggered, for reading at first, and for writing too once they have taken
// nothing; an event marks a socket readable or writable, and only a call that would
// have blocked (or a short read) takes the mark away. A marked flow gets a turn, in
// which it moves at most turnBudget bytes in each direction. A new one gets its first
// turn without an event.
//
//	          ┌──────────── message: recv ─▶ 16 KiB ─▶ send
//	socket a ─┼──────────── bulk:    splice ─▶ pipe ─▶ splice          ─▶ socket b
//	          └──────────── no pipe: recv(MSG_PEEK) ─▶ send, then recv what was sent
//
// A read that fills the 16 KiB is followed by splice(2), until that finds less. What
// the destination does not take stays in the message's memory or in the pipe, and the
// direction stops until the destination is writable; both are bounded, and a flow for
// which none is left peeks, which keeps nothing. A pipe is filled only when it is
// empty. What splice(2) says other than a count is not believed: it cannot tell urgent
// data from an end of stream, so a plain read follows that decides.
//
// A direction that brings more than a loop can take without a pause, and no answers
// the other way, is a stream. It is read by the clock, ten thousand times a second,
// instead of on events (see clocked). Everything else is moved at the event, because
// somebody may be waiting for the end of it. In both relays the end of a burst is
// acknowledged at once (see quickAck).
//
// # Ends
//
// In both relays each direction ends by itself: an end of stream is passed on as a
// half-close, and the other direction goes on. A reset on one side resets the other
// and ends both directions; what had arrived before it is passed on as far as the
// other side takes it at once. Where the end of stream is known before the last bytes
// are sent, it goes in one segment with them (MSG_MORE). A side that takes no bytes
// stops its direction, so the window of the other side closes. Until the last byte of a
// direction is with the kernel a killed process looks like a reset, not like the end of
// the stream. A socket whose connection has left nothing behind may be kept instead of
// closed (Splice.Keep).
package relay
