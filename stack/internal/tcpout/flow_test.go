package tcpout

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/postern-net/postern/stack/internal/flow"
	"github.com/postern-net/postern/stack/netplan"
	"github.com/postern-net/postern/stack/stacktest"
)

func TestConnectionCarriesBytes(t *testing.T) {
	for _, f := range families {
		r := newRig(t)
		servers := r.dialer.Serve(t, f.target)
		c := r.dial(t, f.inside, f.target)
		server := accepted(t, servers)
		c.send(t, stacktest.ACK|stacktest.PSH, []byte("hello"))
		buf := make([]byte, 5)
		if _, err := io.ReadFull(server, buf); err != nil || string(buf) != "hello" {
			t.Fatalf("%q, %v", buf, err)
		}
		if _, err := server.Write([]byte("greetings")); err != nil {
			t.Fatal(err)
		}
		if got := c.read(t, 9); string(got) != "greetings" {
			t.Errorf("%q", got)
		}
		// The container's half ends first, data still comes the other way.
		c.send(t, stacktest.ACK|stacktest.FIN, nil)
		if n, err := server.Read(buf); n != 0 || err != io.EOF {
			t.Errorf("server read %d, %v, want the end", n, err)
		}
		if _, err := server.Write([]byte("last words")); err != nil {
			t.Fatal(err)
		}
		if got := c.read(t, 10); string(got) != "last words" {
			t.Errorf("%q", got)
		}
		_ = server.Close()
		c.expect(t, stacktest.FIN)
		c.send(t, stacktest.ACK, nil)
		r.idle(t)
		flows := r.flows.Counters.Snapshot()
		if flows["tcp_admitted"] != 1 || flows["tcp_dial_failed"] != 0 {
			t.Errorf("%v", flows)
		}
	}
}

func TestResetsPass(t *testing.T) {
	for _, f := range families {
		t.Run("server over "+f.name, func(t *testing.T) {
			r := newRig(t)
			servers := r.dialer.Serve(t, f.target)
			c := r.dial(t, f.inside, f.target)
			server := accepted(t, servers)
			_ = server.SetLinger(0)
			_ = server.Close()
			c.expect(t, stacktest.RST)
			r.idle(t)
		})
		// The server does not read, so that the relay waits for it when the
		// reset comes; before and after the container's end of stream.
		for _, fin := range []bool{false, true} {
			t.Run("container over "+f.name, func(t *testing.T) {
				r := newRig(t)
				servers := r.dialer.Serve(t, f.target)
				c := r.dial(t, f.inside, f.target)
				server := accepted(t, servers)
				r.blockOutward(t, c)
				if fin {
					c.send(t, stacktest.ACK|stacktest.FIN, nil)
					r.settledFlow(t, c)
				}
				c.send(t, stacktest.RST|stacktest.ACK, nil)
				r.idle(t)
				_ = server.SetReadDeadline(time.Now().Add(stacktest.Patience))
				if _, err := io.Copy(io.Discard, server); !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("end of stream %v: the server sees %v", fin, err)
				}
			})
		}
	}
}

// blockOutward sends from the container until the relay waits for the server,
// which does not read, and some more.
func (r *rig) blockOutward(t *testing.T, c *conn) {
	t.Helper()
	payload := bytes.Repeat([]byte("x"), 60000)
	get := func() (n uint64) {
		for _, f := range r.flows.Flows() {
			n = f.BytesOut.Load()
		}
		return n
	}
	sent := uint64(0)
	stacktest.Eventually(t, "the relay to wait for the server", func() bool {
		before := get()
		c.send(t, stacktest.ACK, payload)
		sent += uint64(len(payload))
		for end := time.Now().Add(50 * time.Millisecond); time.Now().Before(end); time.Sleep(time.Millisecond) {
			for _, ok := r.peer.Pending(); ok; _, ok = r.peer.Pending() {
			}
			if get() == sent {
				return false
			}
		}
		return get() == before || get() < sent
	})
}

// settledFlow waits for the acknowledgement of all that was sent.
func (r *rig) settledFlow(t *testing.T, c *conn) {
	t.Helper()
	r.peer.ReceiveWhere(t, func(f stacktest.WireFrame) bool {
		if !stacktest.IsTCP(f, stacktest.ACK) {
			return false
		}
		p := stacktest.IP(t, c.from.Addr(), f)
		return ack(p) == c.next
	})
}

func ack(p *stacktest.Packet) uint32 {
	b := p.Transport
	return uint32(b[8])<<24 | uint32(b[9])<<16 | uint32(b[10])<<8 | uint32(b[11])
}

func TestRepeatedSYNStartsNothingTwice(t *testing.T) {
	for _, f := range families {
		r := newRig(t)
		r.dialer.Hang(f.target)
		for range 20 {
			r.send(t, syn(f.inside, f.target))
		}
		stacktest.Eventually(t, "the dial", func() bool { return r.dialer.Calls(f.target) > 0 })
		r.settled(t)
		if n := r.dialer.Calls(f.target); n != 1 || r.flows.Len(flow.TCP) != 1 || r.count(flow.TCPAdmitted) != 1 {
			t.Errorf("%s: %d dials, %d flows", f.name, n, r.flows.Len(flow.TCP))
		}
		r.peer.Silent(t)
	}
}

// 10,000 SYNs to a destination that swallows them do not keep a good one waiting.
func TestBlackHoleLeavesRoomForOthers(t *testing.T) {
	f := families[0]
	r := newRig(t)
	r.dialer.Hang(f.target)
	servers := r.dialer.Serve(t, f.another)
	for i := range uint16(10000) {
		r.send(t, syn(port(f.inside, 10000+i), f.target))
	}
	c := r.dial(t, f.inside, f.another)
	server := accepted(t, servers)
	c.send(t, stacktest.ACK, []byte("x"))
	if _, err := io.ReadFull(server, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if n := r.dialer.Calls(f.target); n > flow.MaxPendingPerDestination {
		t.Errorf("%d dials to the black hole at once", n)
	}
	if n := r.count(flow.TCPRefusedDestination); n != 10000-flow.MaxPendingPerDestination {
		t.Errorf("%d SYNs counted as refused, want %d", n, 10000-flow.MaxPendingPerDestination)
	}
}

// SYN, SYN-ACK, RST, over and over: every slot comes back.
func TestAbandonedHandshakesFreeTheirSlots(t *testing.T) {
	f := families[0]
	r := newRig(t)
	servers := r.dialer.Serve(t, f.target)
	for i := range uint16(2000) {
		from := port(f.inside, 10000+i%100)
		r.send(t, syn(from, f.target))
		c := r.synAck(t, from, f.target)
		c.send(t, stacktest.RST|stacktest.ACK, nil)
		_ = accepted(t, servers).Close()
		r.idle(t)
	}
	if r.flows.Len(flow.TCP) != 0 || r.count(flow.TCPAdmitted) != 2000 {
		t.Errorf("%d flows left, %v", r.flows.Len(flow.TCP), r.flows.Counters.Snapshot())
	}
}

// Data on a SYN without a cookie for it is not accepted with it (RFC 7413
// section 3): it is not acknowledged, and arrives once when it is sent again.
// Urgent data is data.
func TestDataOnSYNAndUrgentData(t *testing.T) {
	for _, f := range families {
		r := newRig(t)
		servers := r.dialer.Serve(t, f.target)
		s := syn(f.inside, f.target)
		s.Payload, s.Flags, s.Urgent = []byte("early"), stacktest.SYN|stacktest.URG, 3
		r.send(t, s)
		c := r.synAck(t, f.inside, f.target)
		server := accepted(t, servers)
		r.send(t, stacktest.Segment{Src: f.inside, Dst: f.target, Seq: c.next, Ack: c.peer, Flags: stacktest.ACK | stacktest.URG, Urgent: 5, Payload: []byte("early")})
		buf := make([]byte, 5)
		if _, err := io.ReadFull(server, buf); err != nil || string(buf) != "early" {
			t.Errorf("%s: %q, %v", f.name, buf, err)
		}
		_ = server.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		if n, err := server.Read(buf); n != 0 {
			t.Errorf("%s: %q twice, %v", f.name, buf[:n], err)
		}
	}
}

// Options and windows that make no sense do no harm.
func TestOddSegments(t *testing.T) {
	f := families[0]
	r := newRig(t)
	servers := r.dialer.Serve(t, f.target)
	for i, options := range [][]byte{
		stacktest.MSS(0), stacktest.MSS(1), {3, 3, 255, 0}, {2, 0, 0, 0}, {8, 10, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0}, {5, 40, 1, 1},
		bytes.Repeat([]byte{254}, 40), {4, 2, 4, 2}, {1, 1, 1, 2}, {34, 2, 1, 1},
	} {
		for _, seq := range []uint32{0, 1<<31 - 1, 1<<32 - 1} {
			from := port(f.inside, uint16(20000+i))
			s := syn(from, f.target)
			s.Options, s.Seq, s.ZeroWindow = options, seq, i%2 == 0
			r.send(t, s)
			p := r.peer.ReceiveWhere(t, func(w stacktest.WireFrame) bool { return stacktest.IsTCP(w, stacktest.SYN|stacktest.ACK) })
			got := stacktest.IPv4(t, p, stacktest.TCP(stacktest.AckNum(seq+1)))
			r.send(t, stacktest.Segment{Src: from, Dst: f.target, Seq: seq + 1, Ack: got.Seq() + 1, Flags: stacktest.RST | stacktest.ACK})
			_ = accepted(t, servers).Close()
			r.idle(t)
		}
	}
}

func TestNameServiceConnections(t *testing.T) {
	for _, f := range families {
		resolver := netip.AddrPortFrom(netplan.Default().Of(f.inside.Addr()).Resolver, 53)
		r := newRig(t)
		c := r.dial(t, f.inside, resolver)
		server := <-r.dns
		c.send(t, stacktest.ACK, []byte("query"))
		buf := make([]byte, 5)
		if _, err := io.ReadFull(server, buf); err != nil || string(buf) != "query" {
			t.Errorf("%q, %v", buf, err)
		}
		if r.flows.Len(flow.TCP) != 0 {
			t.Error("the name service takes a place among the flows")
		}
	}
}

// A flood of half-open connections to the name service is bounded, counted, and
// takes no other connection's place.
func TestNameServiceFlood(t *testing.T) {
	f := families[0]
	resolver := netip.AddrPortFrom(netplan.Default().V4.Resolver, 53)
	r := newRig(t)
	servers := r.dialer.Serve(t, f.target)
	const flood = 20000
	for i := range uint16(flood) {
		r.send(t, syn(port(f.inside, 10000+i), resolver))
		for _, ok := r.peer.Pending(); ok; _, ok = r.peer.Pending() {
		}
	}
	r.send(t, syn(f.inside, f.target))
	f2 := r.peer.ReceiveWhere(t, func(w stacktest.WireFrame) bool {
		return stacktest.IsTCP(w, stacktest.SYN) && stacktest.IPv4(t, w).IP.Src == f.target.Addr()
	})
	stacktest.IPv4(t, f2, stacktest.TCP(stacktest.Flags(stacktest.SYN|stacktest.ACK)))
	accepted(t, servers)
	if n := r.count(flow.DNSRefusedLimit); n < flood-8*flow.MaxDNSConns {
		t.Errorf("%d SYNs to the name service refused of %d", n, flood)
	}
}

// Handshakes that the container never completes, of dials that succeeded, give
// way like dials that lead nowhere, and their host sockets are closed.
func TestUnfinishedHandshakesGiveWay(t *testing.T) {
	f := families[0]
	r := newRig(t)
	r.peer.Discard()
	const targets = flow.MaxPendingTCP/flow.MaxPendingPerDestination + 1
	for i := range uint16(targets) {
		target := port(f.target, 1000+i)
		servers := r.dialer.Serve(t, target)
		for j := range uint16(flow.MaxPendingPerDestination) {
			r.send(t, syn(port(f.inside, 10000+i*flow.MaxPendingPerDestination+j), target))
		}
		stacktest.Eventually(t, "the dials", func() bool { return len(servers) == flow.MaxPendingPerDestination })
	}
	under := func() int {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.attempts)
	}
	stacktest.Eventually(t, "the oldest handshakes to end", func() bool { return under() == flow.MaxPendingTCP })
	if n := r.flows.Len(flow.TCP); n != flow.MaxPendingTCP {
		t.Errorf("%d flows, want %d", n, flow.MaxPendingTCP)
	}
	if n := r.count(flow.TCPEvicted); n != flow.MaxPendingPerDestination {
		t.Errorf("%d gave way, want %d", n, flow.MaxPendingPerDestination)
	}
}
