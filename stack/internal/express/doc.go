// Package express carries outgoing TCP connections of the container beside its device:
// only the SYN crosses it, the bytes stay in the kernel.
//
// This is the engine's half. The other half is in the container's network namespace,
// put there once (userns/express): a transparent listener for each family; packet filter
// rules that hand a SYN which comes in by the device, and has the container's own
// address as its source, to that listener; and marks that keep the connection's other
// packets off the device. Of all that nothing is relied upon here: container root can
// change it. What the guard has let pass is in a table of ours, and an accepted socket
// that is not in there is reset.
//
// # The way of a SYN
//
//	container's socket                       engine                          host
//	 1 connect ─── SYN ───▶ device ───▶ link, guard, Take
//	 2                          sock_diag: is it a socket of the netns itself?
//	 3                                   flow table, dial ───────── SYN ──────▶
//	 4                                                   ◀─────── SYN-ACK ─────
//	 5        ◀── the same SYN ── device ◀── Reinject
//	 6 handshake with the listener, in the container's kernel, within the write of 5
//	 7                                   accept, pair, Splice
//	 8 bytes ◀═══════ accepted socket ◀═ relay ═▶ host's socket ═══════▶ bytes
//
// The listener takes the SYN-ACK, the accepted socket has the original destination for
// its own address, and the client's socket is none the wiser: it is connected when the
// target has answered, and not before.
//
// Steps 1 and 2 run on the goroutine that reads frames, the others on the thread of the
// listener's loop (package relay), so that dials and accepted sockets of a family meet
// on one thread. A connection costs no goroutine. A target that answers at once, such as
// one on this machine, is connected without waiting for an event, and its SYN is written
// back and the socket accepted in the same turn.
//
// # Which connections
//
// Those that the sock_diag socket, which was made in the container's namespace, knows to
// be of a socket in there (state SYN_SENT, and the very four addresses and ports). A
// nested container's has another namespace, and its masqueraded connection is in the
// connection tracking table already, which would drop a SYN from outside; a raw frame has
// no socket. They go the universal path (tcpout) at once, as does everything while the
// path rests, with data in the SYN, or beyond MaxFlows.
//
// # Stages
//
//	        ┌────────────── dialing ──────────────┐ refused: RST, ICMP error, or nothing
//	        │                  │ connected         │ client gone, gave way, Close: nothing
//	short of descriptors       ▼                   ▼
//	        │              injected ───────────▶ over
//	        ▼                  │   │ not paired within pairTimeout and the client waits
//	universal path ◀───────────┼───┘
//	                           ▼ paired: peer and local address are the SYN's
//	                        opened ───────────▶ over, when the relay has ended
//
// A SYN that is sent again starts nothing while its dial is under way, is written back
// again afterwards, and once the flow is opened means that the client's side is gone and
// its port is used again, if sock_diag confirms it: then the old flow is reset and the
// new one begins.
//
// A program that gives up while its dial hangs sends nothing, so the client's socket is
// looked for every checkEvery. Answers to a dial that failed are those of tcpout (package
// refusal); limits and evictions are those of the flow table, where the flows of both
// paths are entries alike.
//
// # When it does not work
//
// A client that has a SYN written back but does not get connected waits for pairTimeout,
// then netstack gets its SYN. After maxFailures of these in a row the path rests, for
// longer each time (see health), Lost is called, and one line is logged. A client that
// is connected but not to us, because somebody else accepts from the listener, or
// because what it sends does not get there, fails; that is a failure of the path too.
//
// # Limits
//
// A flow costs two descriptors, and pipes of the relay only while bytes are on their way;
// MaxFlows bounds them to half of the process's descriptors. Without any left for the
// host's side the universal path gets the SYN. Without one for the accepted socket the
// client, who is connected by then, is reset, by means of a spare descriptor.
//
// The counters are flow.TCPExpress and those after it.
package express
