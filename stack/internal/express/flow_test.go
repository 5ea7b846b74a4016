package express

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/proto/icmp"
	"github.com/postern-net/postern/stack/internal/flow"
	"github.com/postern-net/postern/stack/internal/link"
	"github.com/postern-net/postern/stack/stacktest"
)

// open makes a connection and returns both ends.
func (r *rig) open(t testing.TB, k flow.Key) (client, server *net.TCPConn) {
	t.Helper()
	at, l := r.server(t)
	r.take(t, k, at)
	return r.client(t), accepted(t, l)
}

func TestConnection(t *testing.T) {
	for loops := 1; loops <= 2; loops++ {
		eachSide(t, loops, func(t *testing.T, r *rig) {
			k := r.key()
			client, server := r.open(t, k)
			if client.LocalAddr().String() != k.Initiating.String() || client.RemoteAddr().String() != k.Target.String() {
				t.Errorf("the client is connected from %s to %s", client.LocalAddr(), client.RemoteAddr())
			}
			r.await(t, flow.TCPExpress, 1)
			f := r.flows.Flows()[0]
			if f.Key != k || f.Path() != flow.Express || f.State() != flow.Open {
				t.Errorf("flow %v is %v, %v", f.Key, f.Path(), f.State())
			}
			const out, in = 300_000, 200_000
			data := make([]byte, out)
			for i := range data {
				data[i] = byte(rand.Uint32())
			}
			go func() {
				_, _ = client.Write(data)
				_ = client.CloseWrite()
			}()
			got, err := io.ReadAll(server)
			if err != nil || !bytes.Equal(got, data) {
				t.Fatalf("the server got %d bytes, %v", len(got), err)
			}
			go func() {
				_, _ = server.Write(data[:in])
				_ = server.Close()
			}()
			got, err = io.ReadAll(client)
			if err != nil || !bytes.Equal(got, data[:in]) {
				t.Fatalf("the client got %d bytes, %v", len(got), err)
			}
			r.empty(t)
			if f.BytesOut.Load() != out || f.BytesIn.Load() != in {
				t.Errorf("counted %d bytes out, %d in", f.BytesOut.Load(), f.BytesIn.Load())
			}
		})
	}
}

// Many at once, on both loops: every client gets its own server.
func TestManyConnections(t *testing.T) {
	eachSide(t, 2, func(t *testing.T, r *rig) {
		at, l := r.server(t)
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					_, _ = io.Copy(c, c)
				}()
			}
		}()
		for range 4 {
			const n = 50
			var clients []*net.TCPConn
			for range n {
				r.take(t, r.key(), at)
			}
			for range n {
				clients = append(clients, r.client(t))
			}
			for i, c := range clients {
				fmt.Fprintf(c, "client %d", i)
				_ = c.CloseWrite()
			}
			for i, c := range clients {
				if b, err := io.ReadAll(c); err != nil || string(b) != fmt.Sprintf("client %d", i) {
					t.Fatalf("client %d read %q, %v", i, b, err)
				}
				c.Close()
			}
		}
		r.empty(t)
		if r.count(flow.TCPExpress) != 200 || r.count(flow.TCPExpressUnpaired) != 0 {
			t.Errorf("%v", r.flows.Counters.Snapshot())
		}
	})
}

func TestWhatIsLeftToTheUniversalPath(t *testing.T) {
	eachSide(t, 1, func(t *testing.T, r *rig) {
		at, _ := r.server(t)
		no := func(what string, p link.Packet, k flow.Key) {
			t.Helper()
			if r.Take(p, k, at) {
				t.Errorf("%s: taken", what)
			}
		}
		k := r.key()
		r.diag.say(none, nil)
		no("a nested container's", syn(k, 1), k)
		r.diag.say(established, nil)
		no("an established socket's", syn(k, 1), k)
		if r.count(flow.TCPExpressForeign) != 2 {
			t.Errorf("%v", r.flows.Counters.Snapshot())
		}
		r.diag.say(none, errors.New("no memory"))
		no("one that nothing is known about", syn(k, 1), k)
		if r.count(flow.TCPExpressDiagFailed) != 1 {
			t.Errorf("%v", r.flows.Counters.Snapshot())
		}
		r.diag.say(synSent, nil)
		other := flow.Key{Proto: flow.TCP, Initiating: netip.AddrPortFrom(r.inside.Next(), 1), Target: r.target}
		no("another address's", syn(other, 1), other)
		long := syn(k, 1)
		long.Bytes = append(long.Bytes, make([]byte, maxSYN)...)
		no("one with data", long, k)
		f := r.flows.AdmitDial(k, func() {})
		no("one whose flow is universal", syn(k, 1), k)
		r.flows.Release(f)
		if a, _, _, _ := r.sender.sent(); a != 0 || r.diag.asked != 3 {
			t.Errorf("%d were written back, %d looked up", a, r.diag.asked)
		}
		r.Close()
		no("one after Close", syn(k, 1), k)
	})
}

func TestNoListenerOfThatFamily(t *testing.T) {
	r := newRig(t, sides[0], 1, 0)
	k := flow.Key{Proto: flow.TCP, Initiating: netip.AddrPortFrom(sides[1].inside, 1), Target: netip.AddrPortFrom(sides[1].listener, 1)}
	if r.Take(syn(k, 1), k, k.Target) {
		t.Error("taken")
	}
}

func TestMaxFlows(t *testing.T) {
	r := newRig(t, sides[0], 1, 2)
	r.open(t, r.key())
	client, _ := r.open(t, r.key())
	k := r.key()
	if r.Take(syn(k, 1), k, k.Target) || r.count(flow.TCPExpressLimit) != 1 {
		t.Errorf("a third of two was taken: %v", r.flows.Counters.Snapshot())
	}
	_ = client.SetLinger(0)
	client.Close()
	stacktest.Eventually(t, "a place", func() bool { return !r.full() })
	r.open(t, k)
}

func TestRefusals(t *testing.T) {
	eachSide(t, 1, func(t *testing.T, r *rig) {
		at, l := r.server(t)
		l.Close()
		k := r.key()
		r.take(t, k, at)
		r.empty(t)
		stacktest.Eventually(t, "the reset", func() bool { _, _, n, _ := r.sender.sent(); return n == 1 })
		if got := keyOf(r.sender.resets[0]); got != k {
			t.Errorf("the reset is about %v, want %v", got, k)
		}
		for i, c := range []struct {
			to   netip.Addr
			kind icmp.Kind
		}{{r.unreachableIP, icmp.HostUnreachable}, {r.prohibitedIP, icmp.AdminProhibited}} {
			r.take(t, r.key(), netip.AddrPortFrom(c.to, 80))
			r.empty(t)
			stacktest.Eventually(t, "the ICMP error", func() bool { _, _, _, n := r.sender.sent(); return n == i+1 })
			if r.sender.errors[i] != c.kind {
				t.Errorf("%s: ICMP error %v, want %v", c.to, r.sender.errors[i], c.kind)
			}
		}
		if a, b, _, _ := r.sender.sent(); a+b != 0 || r.count(flow.TCPDialFailed) != 3 {
			t.Errorf("%d written back, %d resubmitted, %v", a, b, r.flows.Counters.Snapshot())
		}
	})
}

// A socket that connect(2) has given the target's own port is connected to itself.
func TestSelfConnection(t *testing.T) {
	r := newRig(t, sides[0], 1, 0)
	before, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		t.Fatal(err)
	}
	if err := portRange("50000\t50001"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = portRange(string(before)) })
	k := r.key()
	for range 20 { // one of the two ports is the target's
		r.take(t, k, netip.MustParseAddrPort("127.0.0.1:50000"))
		r.empty(t)
	}
	if a, _, n, _ := r.sender.sent(); a != 0 || n != 20 {
		t.Errorf("%d of 20 written back, %d refused", a, n)
	}
}

func portRange(ports string) error {
	return os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte(ports), 0)
}

func TestOutboundAddress(t *testing.T) {
	for _, s := range sides {
		r := newRig(t, s, 1, 0)
		r.cfg.Outbound4, r.cfg.Outbound6 = sides[0].inside, sides[1].inside
		_, server := r.open(t, r.key())
		if server.RemoteAddr().(*net.TCPAddr).AddrPort().Addr() != s.outside {
			t.Errorf("loopback is reached from %s", server.RemoteAddr())
		}
		l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(s.listener, 0)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		r.take(t, r.key(), l.Addr().(*net.TCPAddr).AddrPort())
		r.client(t)
		if got := accepted(t, l).RemoteAddr().(*net.TCPAddr).AddrPort().Addr(); got != s.inside {
			t.Errorf("the outside is reached from %s, want %s", got, s.inside)
		}
		r.cfg.Outbound4, r.cfg.Outbound6 = addr("198.51.100.7"), addr("2001:db8:9::9")
		r.take(t, r.key(), l.Addr().(*net.TCPAddr).AddrPort())
		stacktest.Eventually(t, "the ICMP error", func() bool { _, _, _, n := r.sender.sent(); return n == 1 })
	}
}

// A reset on either side reaches the other.
func TestResets(t *testing.T) {
	eachSide(t, 2, func(t *testing.T, r *rig) {
		client, server := r.open(t, r.key())
		_ = client.SetLinger(0)
		client.Close()
		wantReset(t, "the server", server)
		client, server = r.open(t, r.key())
		_ = server.SetLinger(0)
		server.Close()
		wantReset(t, "the client", client)
		r.empty(t)
	})
}

// The same four addresses and ports again, at once and while the old flow is still
// there because its client has vanished without a word.
func TestSameFourTuple(t *testing.T) {
	eachSide(t, 2, func(t *testing.T, r *rig) {
		k := r.key()
		for range 3 {
			client, server := r.open(t, k)
			_ = client.SetLinger(0)
			client.Close()
			wantReset(t, "the server", server)
			r.empty(t)
		}
		client, server := r.open(t, k)
		vanish(t, client)
		at := server.LocalAddr().(*net.TCPAddr).AddrPort() // it has the same target
		r.take(t, k, at)
		wantReset(t, "the vanished client's server", server)
		r.client(t)
		r.await(t, flow.TCPExpress, 5)
		// A SYN that is none of a waiting client changes nothing.
		r.diag.say(established, nil)
		r.take(t, k, at)
		if r.count(flow.TCPExpress) != 5 || r.flows.Len(flow.TCP) != 1 {
			t.Errorf("%v", r.flows.Counters.Snapshot())
		}
	})
}

// vanish closes a socket so that its peer learns nothing (TCP_REPAIR in tcp(7)).
func vanish(t testing.TB, c *net.TCPConn) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err == nil {
		e := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_REPAIR, 1) })
		err = errors.Join(err, e)
	}
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}
