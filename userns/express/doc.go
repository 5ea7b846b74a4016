// Package express sets up the express path in a container's network namespace: what
// lets a connection of the container's stay within its kernel, although its other end
// is far away. Only the packet that opens it crosses the container's interface.
//
// This package installs, repairs and removes what the kernel needs for that. The flows
// themselves are the engine's, which gets the sockets (Path).
//
// # The SYN's way
//
//	the container's network namespace                      | the engine
//	                                                       |
//	 client ---- SYN ----> out ----> interface (TAP) ------|--> guard, dial the remote
//	 C:p -> R:443                                          |         |
//	                                                       |      connected
//	 listener <-- tproxy, mark --- in <--- interface <-----|---- the same SYN, written back
//	 127.0.0.1:61051                                       |
//	    |  SYN-ACK (mark: the flow's too) ---> client      |
//	    |  <-------------- ACK by lo --------- client      |
//	 accepted socket: R:443 <- C:p ------------------------|--> accept, splice
//
// The listener is a transparent socket (IP_TRANSPARENT, ip(7)): what it accepts has the
// remote's address as its own. Handshake and all happen within the write, so the engine
// finds the connection when it returns, and knows it by its two addresses. It dials
// first; a connection that cannot be made is refused truthfully, because until the SYN
// is written back nobody has answered.
//
// # The bytes' way
//
//	client --> out: the flow has the mark, so the packet gets it --> rule 51 --> lo
//	                                                                             |
//	engine <== splice == accepted socket <----------------------------------------
//	engine == splice ==> accepted socket -- to C, which is local --> lo --> client
//
// Packets are as large as the kernel makes them on lo, whatever the interface's MTU.
//
// UDP differs in that the engine decides at any datagram. It binds a socket of its own
// (handoff.SocketExpressUDP4 and 6) to the remote's address, connects it to the
// container's, and writes the datagram back, or only sends an answer through it: either
// marks the flow. From then on the kernel gives the container's datagrams to that
// socket, because tproxy prefers the connected socket of a packet's four-tuple. Once
// that is closed, what follows arrives at the catch-all socket, with the destination as
// IP_ORIGDSTADDR: nothing is lost, and the flow may go over again.
//
// # What is installed
//
// An nf_tables table, here for IPv4 alone, with M for rtnl.PublishedMask and X for
// rtnl.ExpressMark, P for rtnl.PublishedMark, U for rtnl.UniversalMark; C is the container's
// address:
//
//	table inet postern {
//	  chain raw { type filter hook output priority raw
//	    0  meta mark & M == P : notrack
//	  }
//	  chain out { type route hook output priority mangle
//	       meta mark & M == P : accept
//	       ct mark & M == X, udp : meta mark = X, accept
//	    1  meta mark & M == X, ct mark & M == X : accept
//	       meta mark & M == X, tcp, ct mark & M == U : drop
//	       meta mark & M == X : ct mark = X, accept
//	    2  ct mark & M == X, a TCP SYN : ct mark = 0
//	       ct mark & M == U, a TCP SYN : ct mark = 0
//	    3  ct mark & M == X : meta mark = X
//	  }
//	  chain in { type filter hook prerouting priority mangle
//	    6  iif lo, meta mark & M == X, udp, saddr C : tproxy to 127.0.0.1:61051, accept
//	       iif lo : accept
//	    4  iifname tap0, saddr C, pkttype host, a TCP SYN : tproxy to 127.0.0.1:61051, meta mark = X, accept
//	    5  iifname tap0, saddr C, pkttype host, udp : tproxy to 127.0.0.1:61051, ct mark = X, meta mark = X, accept
//	    7  iifname tap0, saddr C, pkttype host : drop
//	       iifname tap0, tcp, ct mark & M == X : ct mark = U
//	  }
//	  chain source { type nat hook postrouting priority srcnat - 1
//	    8  oifname tap0, saddr C : snat to saddr
//	    9  meta mark & M == X : snat to saddr
//	  }
//	}
//
// a rule, a route and a setting:
//
//	ip rule 51: from all fwmark 0x1051/0x10ff lookup 20561
//	ip route table 20561: local default dev lo
//	net.ipv4.conf.tap0.accept_local = 1
//
// One mark is enough. On a packet it means "to lo"; our sockets have it, and what they
// send is for C, which is local anyway. So a setting that copies marks from packets to
// sockets or answers (tcp_fwmark_accept, fwmark_reflect: published ports need them) does
// no harm, nor does a rule of others that copies the flow's mark to the packet.
//
//   - 0: our table makes the kernel track connections in here. Published ones, whose both
//     sides have their own mark, need that only for nested networks (below), and it would
//     cost a tenth of their rate. Whatever else goes by lo is tracked, because rules of
//     others may want it.
//   - Before 1: what each datagram meets, either way, as early as it can be; the same
//     follows from 1 and 3.
//   - 1: a flow is on the path once our side has said something. Were the mark set by
//     the SYN (4), a flow that a firewall then keeps from us would be lost for the
//     universal path too. One whose client does not get what we say, because lo is down
//     or a firewall there, goes the universal way at last: netstack's answer, behind 7,
//     marks it as such, and the SYN-ACK that our listener repeats must not undo that.
//   - 2: a connection begins with a question to the engine, also when the four-tuple is
//     that of an older one that connection tracking still remembers: after a reset by the
//     remote it keeps the entry, mark and all. Otherwise the SYN, and what follows if the
//     flow takes the universal path this time, would go to lo.
//   - 3: the route chain looks up the route again when the mark changes. ICMP errors
//     belong to the flow that they are about, so they stay in here too.
//   - 4, 5: the engine is the only one who can send from C into the interface. The
//     copies of its own multicast that the kernel gives to local members look the same
//     but for the packet type.
//   - 6: without it a datagram could reach a server of the container's that listens on
//     the remote's port on all addresses.
//   - 7: accept_local lets packets from an own address in, which the kernel otherwise
//     drops as spoofed.
//   - 8, 9: the kernel ties a masqueraded flow to the interface that it began on and
//     drops it when it goes on by lo. Flows from C need no translation to C; settled as
//     "keep", they are not masqueraded. Flows of nested containers have other sources
//     here and are masqueraded by whoever wants it.
//   - accept_local: without it the SYN that is written back is dropped (RFC 1812,
//     section 5.3.8). IPv6 has no such check. rp_filter may be anything: the route back
//     to C is by the interface, and packets on lo have their route already.
//
// None of this needs a file below /proc/sys: accept_local is set over
// rtnetlink. Two files are written, where they can be: net.ipv4.tcp_congestion_control
// (reno), because a congestion control that paces, such as BBR, slows down what never
// leaves the machine, and net.ipv4.ip_unprivileged_port_start (0), without which UDP to
// ports below 1024 stays on the universal path.
//
// # Published ports of nested containers
//
// Docker, nerdctl and others nest containers behind a bridge in here, and send ports on to
// them by destination NAT. A client's packet for such a port goes to lo by its mark, and
// is not tracked, so no such rule sees it. Once there is another interface that is up
// (AwaitNested), Nest has the table without 0, and with:
//
//	chain out {
//	  13  ct mark & M == P, ct direction reply : meta mark = P, accept
//	}
//	chain behind { type route hook output priority dstnat + 1
//	  10  meta mark & M == P, ct direction original, ct status dnat, fib daddr type != local : ct mark = P, meta mark = 0
//	}
//	chain in { after "iif lo"
//	  11  ct mark & M == P, ct direction reply : meta mark = P, accept
//	}
//	chain source {
//	  12  meta mark & M == P : snat to saddr
//	}
//	chain settled { type nat hook output priority dstnat - 1
//	  12  meta mark & M == P, tcp, not a SYN : dnat to daddr
//	}
//
//	ip rule 49: from 127.0.0.0/8 ipproto udp lookup main suppress_prefixlength 0
//
// so that the server behind the bridge sees the client itself:
//
//	198.51.100.7 -> 127.0.0.1:8080 -- dnat --> 198.51.100.7 -> 10.4.0.5:80 -- 10 --> bridge
//	198.51.100.7 <- 127.0.0.1:8080 <- (undone at input) <- 11, rule 50, local <----- bridge
//
// The reasons, by number, and what follows:
//
//   - 10: with the mark it would go to lo all the same. One that is sent on to another
//     local port stays there, and its server's answers need the mark. Only our bits of
//     the connection's mark and the packet's change, each.
//   - 11: before routing, which without the mark would send it to the interface. What the
//     kernel itself answers (a host that is not there: ICMP) is 13.
//   - 12: a flow's translation is decided by the first packet that is tracked. That may be
//     one from the middle of a connection which began before; and nobody needs to
//     masquerade what stays on lo.
//   - It is not about forwarding (net.ipv4.ip_forward): a new namespace inherits that from
//     the host's first one (net.core.devconf_inherit_init_net), and wherever Docker is
//     installed it is on.
//   - NAT comes before listeners, as for every local client: while a rule sends a port on,
//     a server beside the bridge does not get it.
//   - Sockets do not change: those in stock, and those that are used again, do.
//   - [::1] is as good a target as any.
//   - A client whose own address is a loopback one needs what every local client does:
//     masquerade, and route_localnet on the bridge (CNI's portmap has both), and for UDP
//     rule 49 (rtnl.InstallNested). The kernel has nothing like it for IPv6: such a client
//     of [::1] gets no answer, while one of the container's own address does.
//   - With net.ipv4.conf.*.src_valid_mark (wg-quick sets it) the kernel takes what comes
//     back for spoofed.
//   - Connection tracking must be there for others to have NAT. Without nft_fib, ports that
//     are sent on to local ones do not work, without nft_nat 12 is missing.
//
// # Who changes it
//
// The table belongs to our netlink socket (NFT_TABLE_F_OWNER, Linux 5.12): "nft flush
// ruleset" passes it over, nobody else can change it, and it ends with the process that
// installed it, however that ends. Rule, route, setting and, on older kernels, the table
// can be taken away by the container's root; Repair puts them back. Tables of others
// are never touched. Priority and numbers are explained in rtnl/marks.go.
//
// Nothing here is a line of defence. Root in the container can set marks, write rules
// and connect to the listeners. What the engine gets in this way are sockets without a
// connection of its own that waits for them, or with 127.0.0.1:61051 as the
// destination, and it relays nothing that its guard has not passed.
//
// # What an observer in there sees
//
//	ss -tanpe      203.0.113.7:443 10.0.2.100:40000 fwmark:0x1051, the accepted socket
//	ss -tlne       127.0.0.1:61051 and [::1]:61051, or the next free port
//	nft list ruleset, ip rule, ip route show table 20561
//	conntrack -L   the flow with mark=4177; 4176 for a published port of a nested container
//	tcpdump -i lo  the flow's packets; on the interface only the first one
//
// # Limits
//
//   - A flow must begin at a socket of this namespace: for the four-tuple of a masqueraded
//     one, connection tracking has an entry already, and what is written back is dropped
//     or gets another port. sock_diag tells. For UDP too.
//   - The socket must not be bound to an interface (SO_BINDTODEVICE): it would not take
//     answers from lo. sock_diag's exact question with interface 0 does not find it.
//   - A TCP server in the container that does not set SO_REUSEADDR (almost all do) or a
//     UDP server that does not (many) cannot bind to a port on all addresses while a flow
//     to the same port of a remote is on the path: EADDRINUSE. If the UDP server was
//     first, it is the engine's bind that fails, and the flow stays on the universal path.
//   - Who drops incoming packets that belong to no flow of his (an input chain with policy
//     drop) drops the SYN that is written back. Nothing is there to accept then; the flow
//     takes the universal path as if nothing had happened.
//   - Rules that exempt UDP from connection tracking (notrack) keep it on the interface.
package express
