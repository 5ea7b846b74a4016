package express

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/userns/internal/usertest"
)

// A client takes its port again right after the close by either side.
func TestPortReuse(t *testing.T) {
	bothEndpoints(t, func(t *testing.T, w *world) {
		for _, remote := range []netip.AddrPort{remote4, remote6} {
			addr := container4
			if remote.Addr().Is6() {
				addr = container6
			}
			local := netip.AddrPortFrom(addr, 41234)
			for round, clientFirst := range []bool{false, true, false} {
				client, server, _ := w.hand(t, local, remote)
				client.Write([]byte("x"))
				io.ReadFull(server, make([]byte, 1))
				first, second := server, client
				if clientFirst {
					first, second = client, server
				}
				first.Close()
				if _, err := second.Read(make([]byte, 1)); err != io.EOF {
					t.Errorf("round %d: %v, want EOF", round, err)
				}
				second.Close()
				if clientFirst {
					// The client's own TIME_WAIT keeps the four-tuple for a second
					// (tcp_tw_reuse), whoever the server is.
					w.in(t, "sleep 1.1")
				}
				if n := len(w.seen(remote)); n != round+1 {
					t.Errorf("round %d: %d frames, want %d: %s", round, n, round+1, describe(w.seen(remote)))
				}
			}
		}
	})
}

// A SYN that is sent again before the engine has answered is the same connection, and
// so is one that the engine writes back twice.
func TestSYNTwice(t *testing.T) {
	bothEndpoints(t, func(t *testing.T, w *world) {
		for _, remote := range []netip.AddrPort{remote4, remote6} {
			c := w.connect(t, netip.AddrPort{}, remote)
			syn := w.await(t, remote, 2)
			w.writeBack(t, syn)
			s, _, _ := w.accept(t, remote)
			w.writeBack(t, syn)
			l := w.path.TCP4
			if remote.Addr().Is6() {
				l = w.path.TCP6
			}
			if _, _, err := unix.Accept(int(l.Fd())); err != unix.EAGAIN {
				t.Errorf("a second connection came: %v", err)
			}
			dup, err := unix.Dup(c)
			check(t, err)
			exchange(t, stream(t, dup, c), stream(t, s, -1), 1<<18)
			if list := w.seen(remote); len(list) != 2 {
				t.Errorf("%d frames, want 2: %s", len(list), describe(list))
			}
		}
	})
}

// A reset by either side arrives, and no frame of it crosses the interface.
func TestReset(t *testing.T) {
	bothEndpoints(t, func(t *testing.T, w *world) {
		n := 0
		for _, remote := range []netip.AddrPort{remote4, remote6} {
			n = 0
			for _, byClient := range []bool{false, true} {
				client, server, _ := w.hand(t, netip.AddrPort{}, remote)
				n++
				a, b := server, client
				if byClient {
					a, b = client, server
				}
				a.(*net.TCPConn).SetLinger(0)
				a.Close()
				if _, err := b.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
					t.Errorf("by client %t: %v, want a reset", byClient, err)
				}
			}
			// What comes to a socket that is gone is answered with a reset.
			client, server, _ := w.hand(t, netip.AddrPort{}, remote)
			n++
			client.Close()
			reset := false
			for end := time.Now().Add(patience); !reset && time.Now().Before(end); time.Sleep(time.Millisecond) {
				_, err := server.Write([]byte("nobody reads this"))
				reset = err != nil
			}
			if !reset {
				t.Error("no reset from the closed client")
			}
			if list := w.seen(remote); len(list) != n {
				t.Errorf("%d frames, want %d: %s", len(list), n, describe(list))
			}
		}
	})
}

// The universal way works for a four-tuple whose flow was on the path before, also
// where connection tracking still has it: after a reset.
func TestBackToTheUniversalWay(t *testing.T) {
	bothEndpoints(t, func(t *testing.T, w *world) {
		for i, reset := range []bool{false, true} {
			local := netip.AddrPortFrom(container4, uint16(41235+i))
			client, server, _ := w.hand(t, local, remote4)
			if reset {
				server.(*net.TCPConn).SetLinger(0)
			}
			server.Close()
			if _, err := client.Read(make([]byte, 1)); err == nil || reset && !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("reset %t: %v", reset, err)
			}
			client.Close()
			w.forget()
			c := w.connect(t, local, remote4)
			// An answer from outside, as the netstack gives it, and then data.
			w.answerSYN(t, w.await(t, remote4, 1))
			if !ready(c, unix.POLLOUT, patience) {
				t.Fatal("not connected")
			}
			if _, err := unix.Write(c, []byte("hello")); err != nil {
				t.Fatal(err)
			}
			w.await(t, remote4, 3) // SYN, ACK, data
			w.forget()
		}
	})
}

// What our listener says may not arrive, on an interface that is down or by rules of
// others. Then the universal path answers the client, whose packets follow that, although
// the listener goes on to repeat its SYN-ACK (after 1, 3, 7 seconds).
func TestTakenOver(t *testing.T) {
	needs(t, "nft", "ip")
	usertest.AsUser(t)
	for _, damage := range []string{"ip link set lo down", "nft add table ip evil; nft add chain ip evil i '{ type filter hook input priority 0; }'; nft add rule ip evil i iif lo drop"} {
		t.Run(damage, func(t *testing.T) {
			w := newWorld(t, endpoints[1])
			w.express(t)
			w.in(t, damage)
			c := w.connect(t, netip.AddrPort{}, remote4)
			check(t, unix.SetsockoptInt(c, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1))
			syn := w.await(t, remote4, 1)
			w.writeBack(t, syn)
			if ready(c, unix.POLLOUT, 0) {
				t.Fatal("connected")
			}
			w.answerSYN(t, syn)
			if !ready(c, unix.POLLOUT, patience) {
				t.Fatal("not connected")
			}
			for end := time.Now().Add(1600 * time.Millisecond); time.Now().Before(end); time.Sleep(300 * time.Millisecond) {
				w.forget()
				if _, err := unix.Write(c, []byte("x")); err != nil {
					t.Fatal(err)
				}
				w.await(t, remote4, 1)
			}
		})
	}
}

// A closed UDP socket of the container's tells ours, in here.
func TestICMPError(t *testing.T) {
	bothEndpoints(t, func(t *testing.T, w *world) {
		for _, remote := range []netip.AddrPort{remote4, remote6} {
			client, ours := w.overUDP(t, remote)
			n := len(w.seen(netip.AddrPortFrom(remote.Addr(), 0)))
			w.closeKeepingNumber(t, client)
			send(t, ours, "nobody reads this", netip.AddrPort{})
			if !ready(ours, unix.POLLIN, patience) {
				t.Fatal("no error came")
			}
			if _, err := unix.Read(ours, make([]byte, 1)); err != unix.ECONNREFUSED {
				t.Errorf("%v, want ECONNREFUSED", err)
			}
			if list := w.to(remote.Addr()); len(list) != 1+n {
				t.Errorf("%d frames, want %d: %s", len(list), 1+n, describe(list))
			}
		}
	})
}

// Multicast stays what it is: local members get their copy, and it leaves.
func TestMulticast(t *testing.T) {
	bothEndpoints(t, func(t *testing.T, w *world) {
		group := netip.MustParseAddrPort("239.1.2.3:5353")
		member := w.socket(t, group.Addr(), unix.SOCK_DGRAM)
		check(t, unix.Bind(member, sockaddr(group)))
		check(t, unix.SetsockoptIPMreq(member, unix.SOL_IP, unix.IP_ADD_MEMBERSHIP, &unix.IPMreq{Multiaddr: group.Addr().As4(), Interface: container4.As4()}))
		sender := w.socket(t, group.Addr(), unix.SOCK_DGRAM)
		for range 2 {
			send(t, sender, "to all", group)
			if got, from, _ := receive(t, member); got != "to all" || from.Addr() != container4 {
				t.Errorf("%q from %s", got, from)
			}
		}
		w.await(t, group, 2)
	})
}

// The container's own servers on the ports of remotes are neither reached nor kept
// from listening.
func TestOwnServers(t *testing.T) {
	bothEndpoints(t, func(t *testing.T, w *world) {
		for _, remote := range []netip.AddrPort{remote4, remote6} {
			any := netip.AddrPortFrom(netip.IPv4Unspecified(), remote.Port())
			if remote.Addr().Is6() {
				any = netip.AddrPortFrom(netip.IPv6Unspecified(), remote.Port())
			}
			only := func(fd int) {
				if remote.Addr().Is6() {
					check(t, unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_V6ONLY, 1))
				}
			}
			client, server, _ := w.hand(t, netip.AddrPort{}, remote)
			l := w.socket(t, remote.Addr(), unix.SOCK_STREAM)
			check(t, unix.SetsockoptInt(l, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
			only(l)
			check(t, unix.Bind(l, sockaddr(any)))
			check(t, unix.Listen(l, 5))
			exchange(t, client, server, 1<<16)
			client, server, _ = w.hand(t, netip.AddrPort{}, remote)
			exchange(t, client, server, 1<<16)
			if _, _, err := unix.Accept(l); err != unix.EAGAIN {
				t.Errorf("the container's server got a connection: %v", err)
			}
			u := w.socket(t, remote.Addr(), unix.SOCK_DGRAM)
			check(t, unix.SetsockoptInt(u, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
			only(u)
			check(t, unix.Bind(u, sockaddr(any)))
			udp, ours := w.overUDP(t, remote)
			w.closeKeepingNumber(t, ours)
			send(t, udp, "late", remote)
			if got, _, to := receive(t, int(w.catchAll(remote).Fd())); got != "late" || to != remote {
				t.Errorf("%q to %s", got, to)
			}
			if ready(u, unix.POLLIN, 0) {
				t.Error("the container's server got a datagram for a remote")
			}
		}
	})
}

// What is written back and is no beginning of a flow is dropped: accept_local lets
// nobody into the container's servers under its own address.
func TestSpoofed(t *testing.T) {
	bothEndpoints(t, func(t *testing.T, w *world) {
		for _, remote := range []netip.AddrPort{remote4, remote6} {
			client, server, _ := w.hand(t, netip.AddrPort{}, remote)
			client.Close()
			server.Close()
			syn := w.seen(remote)[0]
			at := w.vnet + 14 + 20
			dst, l4 := w.vnet+14+16, syn.raw[at:]
			if remote.Addr().Is6() {
				at += 20
				dst, l4 = w.vnet+14+24, syn.raw[at:]
			}
			// The same packet with ACK set instead of SYN, to the container itself.
			before := w.in(t, "nft list ruleset; cat /proc/net/snmp | grep Tcp:; cat /proc/net/snmp6 2>/dev/null | grep Ip6InDelivers")
			l4[13] = 16
			copy(syn.raw[dst:], syn.src.Addr().AsSlice())
			w.writeBack(t, syn)
			if after := w.in(t, "nft list ruleset; cat /proc/net/snmp | grep Tcp:; cat /proc/net/snmp6 2>/dev/null | grep Ip6InDelivers"); after != before {
				t.Errorf("it was delivered:\n%s\nbefore\n%s", after, before)
			}
		}
	})
}

// The price of standing for remotes, which the package comment names: a server that does
// not reuse addresses cannot have a remote's port meanwhile, and it can afterwards.
func TestServersThatDoNotReuseAddresses(t *testing.T) {
	bothEndpoints(t, func(t *testing.T, w *world) {
		any := netip.AddrPortFrom(netip.IPv4Unspecified(), remote4.Port())
		_, server, _ := w.hand(t, netip.AddrPort{}, remote4)
		_, ours := w.overUDP(t, remote4)
		for _, kind := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM} {
			fd := w.socket(t, any.Addr(), kind)
			if err := unix.Bind(fd, sockaddr(any)); err != unix.EADDRINUSE {
				t.Errorf("socket type %d, without: %v", kind, err)
			}
			check(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
			if err := unix.Bind(fd, sockaddr(any)); err != nil {
				t.Errorf("socket type %d, with SO_REUSEADDR: %v", kind, err)
			}
			w.closeKeepingNumber(t, fd)
		}
		server.(*net.TCPConn).SetLinger(0) // or TIME_WAIT has the port for a minute
		server.Close()
		w.closeKeepingNumber(t, ours)
		for _, kind := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM} {
			check(t, unix.Bind(w.socket(t, any.Addr(), kind), sockaddr(any)))
		}
	})
}
