// Package link is netstack's network interface: it stands between the frames
// of a tap.Device and the protocols above.
//
// # The way in
//
// One goroutine (Endpoint.Serve) reads frames and hands each on before it reads
// the next. A frame is read into a header view of 128 bytes and a body view of
// 64 KiB, so that the payload of a super-segment reaches the socket buffer, and
// from there the host socket, without being copied: netstack clones the view
// that holds the headers, and that one is small. Every length is checked before
// a byte behind it is looked at:
//
//	runt, too long, foreign MAC, unknown type  dropped, counted
//	ARP, NDP, DHCP, echo to the gateway  answered here (package service)
//	source that the plan does not allow  dropped, counted (guard.Policy.Source)
//	TCP, fragments                       netstack
//	UDP, ICMP                            the handlers, as whole IP packets
//
// UDP and ICMP do not pass through netstack unless they come in fragments: a UDP
// super-segment (virtio UDP_L4) is several datagrams in one frame, which
// netstack would take for one, and netstack answers ICMPv6 echo for every
// address that there is. Reassembled fragments come back from netstack's
// transport handlers to the same functions.
//
// Checksums: a frame with NEEDS_CSUM or DATA_VALID is the kernel's own word that
// its content is whole. All others, such as those of raw sockets, are verified
// here, because netstack can only be told to trust all of them or none.
//
// # The way out
//
// Every packet is one writev(2): virtio header, Ethernet header, network and
// transport header lie in one piece, the payload follows as it is. A segment
// larger than the MTU goes out whole, with its segment size in the virtio
// header. The write waits when the device is full.
//
// The MAC addresses are fixed: the container's is known, the gateway's is ours.
// There is no neighbour cache to fill or to poison. Only on a line to a machine whose
// address nobody tells there is one entry, which that machine alone can change
// (farend.go).
package link
