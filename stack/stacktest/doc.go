// Package stacktest lets tests stand where the container is.
//
// NewPair gives a device without a kernel: what the engine reads is what the
// test injects through the Peer, and what the engine writes comes out there. A
// test builds frames (Segment, Datagram, Echo, Fragments, Frame, Pad) and judges
// those that come back with checkers that are put together like the layers of a
// packet:
//
//	peer.Inject(t, tap.Header{}, stacktest.Frame(stacktest.Segment{...}.Packet()))
//	stacktest.IPv4(t, peer.Receive(t),
//		stacktest.Src(server.Addr()),
//		stacktest.TCP(stacktest.Flags(stacktest.SYN|stacktest.ACK), stacktest.AckNum(8)))
//
// Every checker of an IP packet also verifies lengths and checksums as a kernel
// would. Dialer plays the host's network for outgoing TCP. NoLeaks and
// CheckReferences find what a test left behind: goroutines, descriptors, and
// packets whose reference nobody gave back.
//
// Nothing here starts a goroutine, and every queue is bounded: a test that does
// not keep up with the engine holds it up, like a full device.
package stacktest
