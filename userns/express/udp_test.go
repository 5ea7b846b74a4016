package express

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/proto/handoff"
	"github.com/postern-net/postern/userns/fdpass"
)

// ordered gets a socket of an express flow and connects it.
func (w *world) ordered(t testing.TB, remote, container netip.AddrPort) int {
	t.Helper()
	kind := handoff.SocketExpressUDP4
	if remote.Addr().Is6() {
		kind = handoff.SocketExpressUDP6
	}
	to, from, err := fdpass.Pair()
	check(t, err)
	defer to.Close()
	conn, err := fdpass.NewConn(from)
	check(t, err)
	defer conn.Close()
	check(t, w.target.SendSockets(to, kind, 1))
	conn.SetDeadline(time.Now().Add(patience))
	_, fds, err := conn.RecvRaw(make([]byte, 8), nil)
	if err != nil || len(fds) != 1 {
		t.Fatalf("%d sockets, %v", len(fds), err)
	}
	check(t, unix.Bind(fds[0], sockaddr(remote)))
	check(t, unix.Connect(fds[0], sockaddr(container)))
	return fds[0]
}

// receive reads a datagram with its sender and original destination.
func receive(t testing.TB, fd int) (payload string, from, to netip.AddrPort) {
	t.Helper()
	if !ready(fd, unix.POLLIN, patience) {
		t.Fatal("no datagram came")
	}
	buf, oob := make([]byte, 70_000), make([]byte, 256)
	n, oobn, _, sa, err := unix.Recvmsg(fd, buf, oob, 0)
	check(t, err)
	list, err := unix.ParseSocketControlMessage(oob[:oobn])
	check(t, err)
	for _, m := range list {
		switch {
		case m.Header.Level == unix.SOL_IP && m.Header.Type == unix.IP_ORIGDSTADDR:
			a, _ := netip.AddrFromSlice(m.Data[4:8])
			to = netip.AddrPortFrom(a, binary.BigEndian.Uint16(m.Data[2:]))
		case m.Header.Level == unix.SOL_IPV6 && m.Header.Type == unix.IPV6_ORIGDSTADDR:
			a, _ := netip.AddrFromSlice(m.Data[8:24])
			to = netip.AddrPortFrom(a, binary.BigEndian.Uint16(m.Data[2:]))
		}
	}
	return string(buf[:n]), addrPort(sa), to
}

func send(t testing.TB, fd int, payload string, to netip.AddrPort) {
	t.Helper()
	if to.IsValid() {
		check(t, unix.Sendto(fd, []byte(payload), 0, sockaddr(to)))
	} else if _, err := unix.Write(fd, []byte(payload)); err != nil {
		t.Fatal(err)
	}
}

// A flow goes over at the datagram that is written back.
func TestUDP(t *testing.T) {
	everyEndpoint(t, func(t *testing.T, w *world) {
		for _, remote := range []netip.AddrPort{remote4, remote6} {
			catchAll := int(w.catchAll(remote).Fd())
			client := w.socket(t, remote.Addr(), unix.SOCK_DGRAM)
			send(t, client, "first", remote)
			f := w.await(t, remote, 1)
			ours := w.ordered(t, remote, f.src)
			w.writeBack(t, f)
			if got, from, _ := receive(t, ours); got != "first" || from != f.src {
				t.Fatalf("%q from %s", got, from)
			}
			for range 100 {
				send(t, client, "more", remote)
				if got, _, _ := receive(t, ours); got != "more" {
					t.Fatalf("got %q", got)
				}
				send(t, ours, "answer", netip.AddrPort{})
				if got, from, _ := receive(t, client); got != "answer" || from != remote {
					t.Fatalf("%q from %s", got, from)
				}
			}
			unix.Close(ours)
			send(t, client, "late", remote)
			if got, from, to := receive(t, catchAll); got != "late" || from != f.src || to != remote {
				t.Errorf("late: %q from %s to %s", got, from, to)
			}
			w.train(t, client, catchAll, f.src, remote)
			if list := w.seen(remote); len(list) != 1 {
				t.Errorf("%s: %d frames crossed the interface, want 1: %s", remote, len(list), describe(list))
			}
			// It can go over again without another frame.
			ours = w.ordered(t, remote, f.src)
			send(t, client, "again", remote)
			if got, _, _ := receive(t, ours); got != "again" {
				t.Errorf("got %q", got)
			}
			unix.Close(ours)
		}
	})
}

// train sends datagrams in one piece (UDP_SEGMENT, udp(7)): the catch-all socket gets
// them one by one, or as they are with UDP_GRO.
func (w *world) train(t *testing.T, client, catchAll int, src, remote netip.AddrPort) {
	t.Helper()
	const size, n = 1000, 20
	check(t, unix.SetsockoptInt(client, unix.SOL_UDP, unix.UDP_SEGMENT, size))
	defer unix.SetsockoptInt(client, unix.SOL_UDP, unix.UDP_SEGMENT, 0)
	send(t, client, string(make([]byte, size*n)), remote)
	for range n {
		if got, from, to := receive(t, catchAll); len(got) != size || from != src || to != remote {
			t.Fatalf("%d bytes from %s to %s", len(got), from, to)
		}
	}
	check(t, unix.SetsockoptInt(catchAll, unix.SOL_UDP, unix.UDP_GRO, 1))
	defer unix.SetsockoptInt(catchAll, unix.SOL_UDP, unix.UDP_GRO, 0)
	send(t, client, string(make([]byte, size*n)), remote)
	if got, from, to := receive(t, catchAll); len(got) != size*n || from != src || to != remote {
		t.Errorf("%d bytes from %s to %s", len(got), from, to)
	}
}

// overUDP takes one flow over and checks both ways.
func (w *world) overUDP(t *testing.T, remote netip.AddrPort) (client, ours int) {
	t.Helper()
	before := len(w.seen(remote))
	client = w.socket(t, remote.Addr(), unix.SOCK_DGRAM)
	send(t, client, "first", remote)
	f := w.await(t, remote, before+1)
	ours = w.ordered(t, remote, f.src)
	t.Cleanup(func() { unix.Close(ours) })
	w.writeBack(t, f)
	receive(t, ours)
	send(t, client, "second", remote)
	if got, from, _ := receive(t, ours); got != "second" || from != f.src {
		t.Fatalf("%q from %s", got, from)
	}
	send(t, ours, "answer", netip.AddrPort{})
	if got, from, _ := receive(t, client); got != "answer" || from != remote {
		t.Fatalf("%q from %s", got, from)
	}
	return client, ours
}

// While a rule masquerades everything, a flow whose first packet is ours still has the
// remote's address.
func TestAnswersFirst(t *testing.T) {
	needs(t, "nft")
	bothEndpoints(t, func(t *testing.T, w *world) {
		w.in(t, `nft add table inet other; nft 'add chain inet other c { type nat hook postrouting priority srcnat; }'; nft add rule inet other c masquerade`)
		for _, remote := range []netip.AddrPort{remote4, remote6} {
			client := w.socket(t, remote.Addr(), unix.SOCK_DGRAM)
			addr := container4
			if remote.Addr().Is6() {
				addr = container6
			}
			at := netip.AddrPortFrom(addr, 45678)
			check(t, unix.Bind(client, sockaddr(at)))
			ours := w.ordered(t, remote, at)
			send(t, ours, "hello", netip.AddrPort{})
			if got, from, _ := receive(t, client); got != "hello" || from != remote {
				t.Errorf("%q from %s", got, from)
			}
			send(t, client, "welcome", remote)
			if got, from, _ := receive(t, ours); got != "welcome" || from != at {
				t.Errorf("%q from %s", got, from)
			}
			unix.Close(ours)
			if list := w.seen(remote); len(list) != 0 {
				t.Errorf("%d frames: %s", len(list), describe(list))
			}
		}
	})
}
