package splice

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/proto/handoff"
	"github.com/postern-net/postern/stack/stacktest"
)

// bye ends a connection in order and waits until the driver has none.
func (w *world) bye(c *client) {
	w.Helper()
	_ = c.Conn.(*net.TCPConn).CloseWrite()
	if _, err := io.Copy(io.Discard, c.r); err != nil {
		w.Errorf("the end of a connection: %v", err)
	}
	c.Close()
	stacktest.Eventually(w, "the connection to end", func() bool { return w.Status().TCP == 0 })
}

// TestReuse: one socket serves clients in turn, and each shows its own address.
func TestReuse(t *testing.T) {
	for _, c := range []struct {
		name, host, from, shown string
		container               netip.Addr
		kind                    handoff.SocketKind
	}{
		{"IPv4", "127.0.0.1", "127.0.0.7:0", "127.0.0.1", container4, handoff.SocketTCP4},
		{"IPv6", "[::1]", "[::1]:0", "::1", container6, handoff.SocketTCP6},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, nil)
			port := w.publish(portdriver.Listener{Target: server(t, c.container)}, c.host)
			if c.from == "[::1]:0" {
				// The client has the very address that it shows, so the driver could not
				// try its port.
				w.local.learn(1, true)
				w.local.learn(65535, true)
			}
			for i := range 20 {
				cl := dial(t, c.from, port)
				want := netip.AddrPortFrom(netip.MustParseAddr(c.shown), addrOf(cl.LocalAddr()).Port())
				if seen := cl.seen(t); seen != want.String() {
					t.Errorf("client %d: the server sees %v, want %v", i, seen, want)
				}
				cl.talk(t, fmt.Appendf(nil, "client %d", i))
				w.bye(cl)
			}
			// The first tries may each lose a socket to a port that is not handed out.
			if n := w.stock.Stats().Reused; n < 10 {
				t.Errorf("%d of 19 sockets were used again", n)
			}
			w.counted(portdriver.OtherSource, 0)
		})
	}
}

// TestForeignPort: a client's port may be one that the kernel does not hand out.
func TestForeignPort(t *testing.T) {
	w := newWorld(t, nil)
	port := w.publish(portdriver.Listener{Target: server(t, container4)}, "127.0.0.1")
	for _, p := range []uint16{1500, 40000, 3000, 65535, 2000, 40001, 1501, 65534} {
		cl := dial(t, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.7"), p).String(), port)
		if got := netip.MustParseAddrPort(cl.seen(t)); got.Port() != p {
			t.Errorf("the server sees %v, want port %d", got, p)
		}
		w.bye(cl)
	}
	w.counted(portdriver.OtherSource, 0)
}

// TestPortBoundInside: someone in the container has bound the client's port by number,
// at another address.
func TestPortBoundInside(t *testing.T) {
	w := newWorld(t, nil)
	port := w.publish(portdriver.Listener{Target: server(t, container4)}, "127.0.0.1")
	for range 3 { // the first ones teach the driver which ports are handed out
		cl := dial(t, "127.0.0.7:0", port)
		cl.seen(t)
		w.bye(cl)
	}
	taken := addrOf(listenTCP(t, "127.0.0.9:0").Addr()).Port()
	cl := dial(t, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.7"), taken).String(), port)
	if seen := netip.MustParseAddrPort(cl.seen(t)); seen.Port() != taken {
		t.Errorf("the server sees %v, want port %d", seen, taken)
	}
	w.bye(cl)
	w.counted(portdriver.OtherSource, 0)
}

// TestSameClientTwice: a client uses one port of its own for two published ports at a
// time.
func TestSameClientTwice(t *testing.T) {
	w := newWorld(t, nil)
	one := w.publish(portdriver.Listener{Target: server(t, container4)}, "127.0.0.1")
	two := w.publish(portdriver.Listener{Target: server(t, container4)}, "127.0.0.1")
	for range 5 {
		a := dial(t, "127.0.0.7:0", one)
		b := dial(t, addrOf(a.LocalAddr()).String(), two)
		if as, bs := a.seen(t), b.seen(t); as != bs || netip.MustParseAddrPort(as).Port() != addrOf(a.LocalAddr()).Port() {
			t.Errorf("the servers see %v and %v, the client is %v", as, bs, a.LocalAddr())
		}
		a.talk(t, []byte("one"))
		b.talk(t, []byte("two"))
		a.Close()
		w.bye(b)
	}
	w.counted(portdriver.OtherSource, 0)
}

// TestKernelWithoutPortRange: before Linux 6.3 no socket is used again.
func TestKernelWithoutPortRange(t *testing.T) {
	w := newWorld(t, nil)
	calls := 0
	w.local.set = func(int, uint16) syscall.Errno { // on one lane: the connections come in turn
		calls++
		return unix.ENOPROTOOPT
	}
	port := w.publish(portdriver.Listener{Target: server(t, container4)}, "127.0.0.1")
	for range 5 {
		cl := dial(t, "127.0.0.7:0", port)
		if seen := netip.MustParseAddrPort(cl.seen(t)); seen.Port() != addrOf(cl.LocalAddr()).Port() {
			t.Errorf("the server sees %v, the client is %v", seen, cl.LocalAddr())
		}
		w.bye(cl)
	}
	if n := w.stock.Stats().Reused; n != 0 || calls != 1 {
		t.Errorf("%d sockets were used again, the option was tried %d times", n, calls)
	}
	w.counted(portdriver.OtherSource, 0)
}

// TestPortRangeChanges: the container's root lowers the range after it was learnt.
func TestPortRangeChanges(t *testing.T) {
	w := newWorld(t, nil)
	w.local.set = func(int, uint16) syscall.Errno { return 0 } // as if no port were inside
	w.local.learn(1025, true)
	w.local.learn(65535, true)
	port := w.publish(portdriver.Listener{Target: server(t, container4)}, "127.0.0.1")
	cl := dial(t, "127.0.0.7:0", port)
	seen := netip.MustParseAddrPort(cl.seen(t))
	w.counted(portdriver.OtherSource, 1)
	if f := w.Flows(1); len(f) != 1 || f[0].Source != seen {
		t.Errorf("flows %+v, but the server sees %v", f, seen)
	}
	if v := w.local.verdict(40000); v != portUnknown {
		t.Errorf("the range is still believed: %d", v)
	}
	w.bye(cl)
	again := dial(t, "127.0.0.7:0", port) // found out in time
	if seen := netip.MustParseAddrPort(again.seen(t)); seen.Port() != addrOf(again.LocalAddr()).Port() {
		t.Errorf("the server sees %v, the client is %v", seen, again.LocalAddr())
	}
	w.counted(portdriver.OtherSource, 1)
}

func TestKnownPorts(t *testing.T) {
	var k known
	want := func(v verdict, ports ...uint16) {
		t.Helper()
		for _, p := range ports {
			if got := k.verdict(p); got != v {
				t.Errorf("%+v: port %d is %d, want %d", k, p, got, v)
			}
		}
	}
	want(portUnknown, 1, 40000, 65535)
	k = k.with(1000, false) // could be on either side
	want(portUnknown, 1, 1000, 65535)
	k = k.with(40000, true)
	want(portIn, 40000)
	want(portUnknown, 1, 39999, 40001)
	k = k.with(50000, true)
	want(portIn, 40000, 45000, 50000)
	k = k.with(1000, false).with(900, false)
	want(portOut, 1, 900, 1000)
	want(portUnknown, 1001, 39999, 50001, 65535)
	k = k.with(65000, false).with(65100, false)
	want(portOut, 65000, 65100, 65535)
	k = k.with(30000, true)
	want(portIn, 30000, 50000)
	want(portUnknown, 1001, 29999, 50001, 64999)
}

// TestNoByteOfAnother: whatever way connections end, none sees what another one
// carried. Each carries its own number over and over.
func TestNoByteOfAnother(t *testing.T) {
	w := newWorld(t, nil)
	l := listenTCP(t, "127.0.0.10:0")
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { rudeServer(t, c.(*net.TCPConn)) })
		}
	})
	port := w.publish(portdriver.Listener{Target: addrOf(l.Addr())}, "127.0.0.1")
	var clients sync.WaitGroup
	for worker := range 8 {
		clients.Go(func() {
			for i := range 100 {
				rudeClient(t, port, byte(1+(worker*100+i)%250))
			}
		})
	}
	clients.Wait()
	stacktest.Eventually(t, "all connections to end", func() bool { return w.Status().TCP == 0 })
	l.Close()
	wg.Wait()
	if n := w.stock.Stats().Reused; n == 0 {
		t.Error("no socket was used again")
	}
}

// rudeClient sends one byte over and over and ends somehow.
func rudeClient(t *testing.T, port netip.AddrPort, id byte) {
	cl, err := tryDial("127.0.0.7:0", port)
	if err != nil {
		return // reset already
	}
	c := cl.Conn.(*net.TCPConn)
	defer c.Close()
	_, _ = c.Write(bytes.Repeat([]byte{id}, 1+rand.IntN(40000)))
	switch rand.IntN(5) {
	case 0:
		_ = c.SetLinger(0)
		return
	case 1: // with what the server says unread
		return
	case 2:
		_ = c.CloseWrite()
		return
	case 3:
		_ = c.CloseWrite()
	}
	same(t, "client", c, id)
}

// rudeServer answers with the byte that it gets and ends somehow.
func rudeServer(t *testing.T, c *net.TCPConn) {
	defer c.Close()
	var first [1]byte
	if _, err := io.ReadFull(c, first[:]); err != nil {
		return
	}
	_, _ = c.Write(bytes.Repeat(first[:], 1+rand.IntN(40000)))
	switch rand.IntN(5) {
	case 0:
		_ = c.SetLinger(0)
		return
	case 1:
		return
	case 2:
		_ = c.CloseWrite()
		return
	case 3:
		_ = c.CloseWrite()
		same(t, "server", c, first[0])
	default:
		// As much as comes at once, so that two who wait for each other part.
		buf := make([]byte, 4000)
		n, _ := c.Read(buf)
		same(t, "server", bytes.NewReader(buf[:n]), first[0])
	}
}

// same wants nothing but one byte, to the end.
func same(t *testing.T, who string, r io.Reader, id byte) {
	got, _ := io.ReadAll(r)
	if n := bytes.Count(got, []byte{id}); n != len(got) {
		t.Errorf("a %s got %d bytes that are not its own", who, len(got)-n)
	}
}
