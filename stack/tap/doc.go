// Package tap moves Ethernet frames between the engine and the device that
// stands in the container's network namespace, with the virtio-net header that
// lets a frame be much larger than the MTU.
//
// There are three kinds of device with one interface:
//
//   - a TAP opened with IFF_TAP|IFF_NO_PI|IFF_VNET_HDR, whose header has 12 bytes;
//   - an AF_PACKET socket bound to the far end of a veth pair, with
//     PACKET_VNET_HDR, whose header has 10 bytes. It serves where /dev/net/tun
//     is missing or closed to us;
//   - a TAP opened with IFF_TAP|IFF_NO_PI alone, as others hand over: no header, no
//     offloads, every frame whole and no larger than the MTU.
//
// With a header, the kernel hands over a whole TCP super-segment (up to
// 64 KiB) with one read and takes one with one write, whatever the MTU, and
// leaves the checksum to whoever needs it. Which of these offloads the kernel
// grants is probed once, in New; what it refuses is done by the layers above,
// and said once through Notice.
//
// A Device has one reader, and any number of writers. Reads park in Go's
// poller. Writes wait when the device is full (a packet socket has a bounded
// send buffer; a TAP takes everything) rather than drop.
package tap
