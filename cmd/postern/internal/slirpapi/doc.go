// Package slirpapi serves slirp4netns' API socket: programs that publish ports by
// slirp4netns --api-socket (Podman, RootlessKit, scripts with nc) do it here.
// proto/slirp4netns has the language.
//
// A rule of this socket is an ordinary rule of the instance. The socket has numbers
// of its own for its rules, from 1 and never used twice, as clients know them; it
// lists and removes these only, and those that were removed by other ways are gone
// here, too.
//
//	client ── JSON, half-close ──▶ connection ──▶ table ──▶ Ports
//	       ◀── JSON, end ─────────             id ↔ rule
//
// slirp4netns reads once and takes what came with it. Here a text that breaks off
// may go on until the client shuts its side down or requestTimeout is over, so that
// a client may write in pieces; everything else is answered as soon as it is there,
// whether the client shuts its side down or not. A request that is too long is
// refused and the rest of it not read, as there; the connection may end in a reset.
//
// Where a client wants a port taken to:
//
//	no guest_addr     the container's IPv4 address (N+100)
//	0.0.0.0           the first address of the DHCP pool (N+15), as libslirp has it
//	127.0.0.0/8       the container's own loopback; slirp4netns sends these to its
//	                  network, where they reach nobody
//	any other         this address, which the container or one behind it may have
//
// slirp4netns takes every address and forwards to nowhere those that nobody can
// have. These are refused here: the network's and broadcast address, multicast, and
// the gateway's and name server's, which are ourselves. Multicast is refused on the
// host's side, too.
//
// Who may ask: the socket has mode 0600, and each client's uid is taken from the
// kernel (SO_PEERCRED) and must be ours or root's; others get no answer. A client in
// a child user namespace of ours is the user who made that: the kernel translates.
//
// Clients do not wait for each other as they do with slirp4netns, whose network
// stands still while one is connected: connections are bounded and so is the time
// for a request and for an answer.
package slirpapi
