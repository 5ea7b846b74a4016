package udpout

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"

	"github.com/postern-net/postern/proto/icmp"
	"github.com/postern-net/postern/proto/inet"
	"github.com/postern-net/postern/stack/guard"
	"github.com/postern-net/postern/stack/internal/flow"
	"github.com/postern-net/postern/stack/netplan"
)

// families runs a test for IPv4 and IPv6.
func families(t *testing.T, f func(t *testing.T, client netip.AddrPort, outside []netip.Addr)) {
	t.Run("v4", func(t *testing.T) { f(t, client4, outside4) })
	t.Run("v6", func(t *testing.T) { f(t, client6, outside6) })
}

func TestMappingIsEndpointIndependentAndKeepsThePort(t *testing.T) {
	families(t, func(t *testing.T, client netip.AddrPort, outside []netip.Addr) {
		tb, c := newTable(t, nil)
		for i, a := range outside {
			s := listenOn(t, a)
			send(tb, client, s.addr, "question")
			b, from := s.read(t)
			if string(b) != "question" || from.Port() != client.Port() {
				t.Errorf("%v got %q from %v, want port %d", a, b, from, client.Port())
			}
			s.write(t, []byte("answer"), from)
			got := c.received(t, i+1)[i]
			if got.from != s.addr || got.to != client || string(got.payload) != "answer" || got.segment != 0 {
				t.Errorf("reply %+v", got)
			}
		}
		if n := tb.cfg.Flows.Len(flow.UDP); n != 1 {
			t.Errorf("%d mappings", n)
		}
	})
}

func TestPortThatIsTakenOrPrivilegedIsReplaced(t *testing.T) {
	tb, _ := newTable(t, nil)
	s := listenOn(t, outside4[0])
	taken := listen(t, netip.AddrPortFrom(netip.IPv4Unspecified(), 0))
	for _, port := range []uint16{taken.addr.Port(), 80} {
		send(tb, withPort(client4, port), s.addr, "x")
		if _, from := s.read(t); from.Port() == port {
			t.Errorf("port %d was used", port)
		}
	}
}

func TestFilterLetsOnlyKnownAddressesIn(t *testing.T) {
	families(t, func(t *testing.T, client netip.AddrPort, outside []netip.Addr) {
		tb, c := newTable(t, nil)
		known, stranger, other := listenOn(t, outside[0]), listenOn(t, outside[1]), listenOn(t, outside[0])
		send(tb, client, known.addr, "x")
		_, mapped := known.read(t)
		toStranger := netip.AddrPortFrom(mapped.Addr(), mapped.Port())
		stranger.write(t, []byte("intruder"), toStranger)
		eventually(t, "refusal", func() bool { return count(tb, flow.UDPRefusedFilter) == 1 })
		// Another port of a known address is let in: the filter is address-dependent.
		other.write(t, []byte("other port"), mapped)
		if got := c.received(t, 1)[0]; got.from != other.addr || string(got.payload) != "other port" {
			t.Errorf("%+v", got)
		}
		send(tb, client, stranger.addr, "x")
		stranger.write(t, []byte("friend"), toStranger)
		if got := c.received(t, 2)[1]; got.from != stranger.addr || string(got.payload) != "friend" {
			t.Errorf("%+v", got)
		}
	})
}

func TestGuardRefusalsAreToldAndNothingLeaves(t *testing.T) {
	tb, c := newTable(t, nil)
	lo4 := listen(t, netip.MustParseAddrPort("127.0.0.1:0"))
	lo6 := listen(t, netip.MustParseAddrPort("[::1]:0"))
	refused := []struct {
		from, to netip.AddrPort
		answered bool
	}{
		{client4, lo4.addr, true},
		{client4, netip.AddrPortFrom(netip.MustParseAddr("10.0.2.2"), lo4.addr.Port()), true},
		{client4, netip.AddrPortFrom(netip.MustParseAddr("169.254.169.254"), 80), true},
		{client4, netip.AddrPortFrom(netip.IPv4Unspecified(), lo4.addr.Port()), true},
		{client4, netip.AddrPortFrom(netip.MustParseAddr("255.255.255.255"), lo4.addr.Port()), false},
		{client4, netip.AddrPortFrom(netip.MustParseAddr("10.0.2.255"), lo4.addr.Port()), false},
		{client4, netip.MustParseAddrPort("224.0.0.251:5353"), false},
		{client6, lo6.addr, true},
		{client6, netip.AddrPortFrom(netip.MustParseAddr("fd00::2"), lo6.addr.Port()), true},
		{client6, netip.AddrPortFrom(netip.IPv6Unspecified(), lo6.addr.Port()), true},
		{client6, netip.AddrPortFrom(netip.MustParseAddr("::ffff:127.0.0.1"), lo4.addr.Port()), true},
		{client6, netip.MustParseAddrPort("[ff02::fb]:5353"), false},
	}
	told := 0
	for i, r := range refused {
		quote := []byte(fmt.Sprintf("quote %d", i))
		tb.Handle(Datagram{From: r.from, To: r.to, Payload: []byte("x"), TTL: 64, Quote: quote})
		if !r.answered {
			continue
		}
		told++
		f := c.failed(t, told)[told-1]
		if f.kind != icmp.AdminProhibited || f.to != r.from.Addr() || f.from != tb.cfg.Guard.Plan.Of(r.to.Addr()).Gateway || !bytes.Equal(f.quote, quote) {
			t.Errorf("%v: told %+v", r.to, f)
		}
	}
	tb.Flush()
	if n := len(c.failed(t, told)); n != told {
		t.Errorf("%d errors, want %d", n, told)
	}
	if n := count(tb, flow.UDPRefusedGuard); n != uint64(len(refused)) {
		t.Errorf("%d refusals counted, want %d", n, len(refused))
	}
	if n := tb.cfg.Flows.Len(flow.UDP); n != 0 {
		t.Errorf("%d mappings", n)
	}
	lo4.silent(t)
	lo6.silent(t)
}

func TestMalformedAndSpoofedSourcesOpenNothing(t *testing.T) {
	tb, _ := newTable(t, nil)
	s := listenOn(t, outside4[0])
	send(tb, withPort(client4, 0), s.addr, "x")
	send(tb, client6, s.addr, "x")
	send(tb, netip.MustParseAddrPort("203.0.113.9:5000"), s.addr, "x")
	send(tb, netip.MustParseAddrPort("10.0.2.2:5000"), s.addr, "x")
	if m, sp := count(tb, flow.DropMalformed), count(tb, flow.DropSpoofed); m != 2 || sp != 2 {
		t.Errorf("malformed %d, spoofed %d", m, sp)
	}
	if n := tb.cfg.Flows.Len(flow.UDP); n != 0 {
		t.Errorf("%d mappings", n)
	}
	s.silent(t)
}

func TestHostLoopbackAlias(t *testing.T) {
	families(t, func(t *testing.T, client netip.AddrPort, _ []netip.Addr) {
		plan := netplan.Default()
		gateway := plan.Of(client.Addr()).Gateway
		lo := guard.Loopback(client.Addr())
		open, closed := listenOn(t, lo), listenOn(t, lo)
		tb, c := newTable(t, func(cfg *Config) {
			cfg.Guard.HostLoopback = true
			cfg.Guard.HostLoopbackPorts = []uint16{open.addr.Port()}
		})
		send(tb, client, netip.AddrPortFrom(gateway, closed.addr.Port()), "x")
		send(tb, client, open.addr, "x") // loopback itself stays closed
		if n := len(c.failed(t, 2)); n != 2 {
			t.Fatalf("%d errors", n)
		}
		alias := netip.AddrPortFrom(gateway, open.addr.Port())
		send(tb, client, alias, "hello")
		b, mapped := open.read(t)
		if string(b) != "hello" || mapped.Addr() != lo {
			t.Fatalf("%q from %v", b, mapped)
		}
		open.write(t, []byte("reply"), mapped)
		if got := c.received(t, 1)[0]; got.from != alias || got.to != client {
			t.Errorf("reply %+v", got)
		}
		// Another process of the host may not use the mapping to get in.
		closed.write(t, []byte("intruder"), mapped)
		eventually(t, "refusal", func() bool { return count(tb, flow.UDPRefusedFilter) == 1 })
		closed.silent(t)
	})
}

func TestLoopbackCannotGetInWithoutAlias(t *testing.T) {
	tb, c := newTable(t, nil)
	s, lo := listenOn(t, outside4[0]), listen(t, netip.MustParseAddrPort("127.0.0.1:0"))
	send(tb, client4, s.addr, "x")
	_, mapped := s.read(t)
	lo.write(t, []byte("intruder"), netip.AddrPortFrom(guard.Loopback(client4.Addr()), mapped.Port()))
	eventually(t, "refusal", func() bool { return count(tb, flow.UDPRefusedFilter) == 1 })
	if n := c.numArrivals(); n != 0 {
		t.Errorf("%d arrivals", n)
	}
}

func TestPortUnreachableComesBackAndTheMappingLives(t *testing.T) {
	families(t, func(t *testing.T, client netip.AddrPort, outside []netip.Addr) {
		tb, c := newTable(t, nil)
		live := listenOn(t, outside[0])
		dead := listenOn(t, outside[1])
		_ = dead.Close()
		quote := inet.AppendUDP(nil, client, dead.addr, []byte("as received"))
		tb.Handle(Datagram{From: client, To: dead.addr, Payload: []byte("as received"), TTL: 64, Quote: quote})
		tb.Flush()
		f := c.failed(t, 1)[0]
		if f.kind != icmp.PortUnreachable || f.from != dead.addr.Addr() || f.to != client.Addr() || !bytes.Equal(f.quote, quote) {
			t.Errorf("%+v, want quote %x", f, quote)
		}
		// A pending error must not swallow what is sent next, whatever the order.
		const n = 20
		for range n {
			send(tb, client, dead.addr, "lost")
			send(tb, client, live.addr, "alive")
		}
		for range n {
			if b, _ := live.read(t); string(b) != "alive" {
				t.Fatalf("%q", b)
			}
		}
		if failed := count(tb, flow.UDPSendFailed); failed != 0 {
			t.Errorf("%d sends failed", failed)
		}
	})
}

func TestErrorWithoutKeptQuoteIsMadeUp(t *testing.T) {
	families(t, func(t *testing.T, client netip.AddrPort, outside []netip.Addr) {
		tb, c := newTable(t, nil)
		dead := listenOn(t, outside[1])
		_ = dead.Close()
		send(tb, client, dead.addr, "payload")
		f := c.failed(t, 1)[0]
		h, ok := inet.ParseQuote(f.quote)
		if !ok || h.Src != client.Addr() || h.Dst != dead.addr.Addr() || h.Proto != inet.ProtoUDP {
			t.Fatalf("quote %x: ok %v, %+v", f.quote, ok, h)
		}
		u, ok := inet.ParseUDP(h.Payload(f.quote))
		if !ok || u.SrcPort != client.Port() || u.DstPort != dead.addr.Port() || string(u.Payload) != "payload" {
			t.Errorf("quoted datagram: ok %v, %+v", ok, u)
		}
		if icmp.BuildError(f.kind, f.mtu, f.from, f.to, f.quote) == nil {
			t.Error("no ICMP error can be made of it")
		}
	})
}

func TestNoRouteIsTold(t *testing.T) {
	families(t, func(t *testing.T, client netip.AddrPort, _ []netip.Addr) {
		tb, c := newTable(t, nil)
		nowhere := netip.MustParseAddrPort("192.0.2.7:9")
		if client.Addr().Is6() {
			nowhere = netip.MustParseAddrPort("[2001:db8:ffff::7]:9")
		}
		send(tb, client, nowhere, "x")
		f := c.failed(t, 1)[0]
		if f.kind != icmp.NetUnreachable || f.from != tb.cfg.Guard.Plan.Of(client.Addr()).Gateway {
			t.Errorf("%+v", f)
		}
		if n := count(tb, flow.UDPSendFailed); n != 1 {
			t.Errorf("%d failures counted", n)
		}
	})
}

func TestOutboundAddress(t *testing.T) {
	tb, _ := newTable(t, func(c *Config) { c.Outbound4, c.Outbound6 = outside4[2], outside6[2] })
	for _, c := range []struct {
		client netip.AddrPort
		to     netip.Addr
		want   netip.Addr
	}{{client4, outside4[0], outside4[2]}, {client6, outside6[0], outside6[2]}} {
		s := listenOn(t, c.to)
		send(tb, c.client, s.addr, "x")
		if _, from := s.read(t); from.Addr() != c.want {
			t.Errorf("came from %v, want %v", from, c.want)
		}
	}
}
