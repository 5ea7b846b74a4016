// Package tap moves Ethernet frames between the engine and the device that
// stands in the container's network namespace, with the virtio-net header that
// lets a frame be much larger than the MTU.
//
// There are four kinds of device with one interface:
//
//   - a TAP opened with IFF_TAP|IFF_NO_PI|IFF_VNET_HDR, whose header has 12 bytes;
//   - an AF_PACKET socket bound to the far end of a veth pair, with
//     PACKET_VNET_HDR, whose header has 10 bytes. It serves where /dev/net/tun
//     is missing or closed to us;
//   - a TAP opened with IFF_TAP|IFF_NO_PI alone, as others hand over: no header, no
//     offloads, every frame whole and no larger than the MTU;
//   - a connected unix socket of the type SOCK_SEQPACKET, each message a frame, as a
//     virtual machine has it: no header and no offloads either, and somebody on the
//     other side who may send messages of any length and take none.
//
// With a header, the kernel hands over a whole TCP super-segment (up to
// 64 KiB) with one read and takes one with one write, whatever the MTU, and
// leaves the checksum to whoever needs it. Which of these offloads the kernel
// grants is probed once, in New; what it refuses is done by the layers above,
// and said once through Notice.
//
// A Device has one reader, and any number of writers. Reads park in Go's
// poller. Writes wait when the device is full (a socket has a bounded send buffer;
// a TAP takes everything) rather than drop. Only for the other side of a seqpacket
// socket the patience is bounded: it is no kernel, and may wait for us meanwhile.
package tap
