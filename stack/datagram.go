package stack

import (
	"net"
	"net/netip"

	"github.com/postern-net/postern/proto/icmp"
	"github.com/postern-net/postern/proto/inet"
	"github.com/postern-net/postern/stack/internal/echo"
	"github.com/postern-net/postern/stack/internal/flow"
	"github.com/postern-net/postern/stack/internal/link"
	"github.com/postern-net/postern/stack/internal/udpout"
)

// portDNS is where the name service listens (RFC 1035 section 4.2).
const portDNS = 53

// quoteLen is how much of a packet after its IP header is kept to be quoted in
// an ICMP error: the UDP or ICMP header and a little for whoever reads traces.
const quoteLen = 64

// handleUDP sorts one datagram, or several of one flow: to a client of a published
// port, to the name service, to nobody, or out.
func (e *Engine) handleUDP(p link.Packet) {
	u, ok := inet.ParseUDP(p.Payload(p.Bytes))
	if !ok {
		e.flows.Counters.Inc(flow.DropMalformed)
		return
	}
	from := netip.AddrPortFrom(p.Src, u.SrcPort)
	to := netip.AddrPortFrom(p.Dst, u.DstPort)
	// First, because a published server's clients may have any address: those of the
	// host's loopback have the gateway's.
	if fn := e.published.Load(); fn != nil && (*fn)(from, to, u.Payload, p.Segment) {
		return
	}
	plan := e.cfg.Plan.Of(p.Dst)
	switch {
	case e.cfg.names(to):
		e.query(from, to, u.Payload, p.Segment)
	case p.Dst == plan.Resolver, p.Dst == plan.Gateway && !e.cfg.HostLoopback:
		e.link.SendError(icmp.PortUnreachable, 0, p.Dst, p.Src, quote(p))
	default:
		e.udp.Handle(udpout.Datagram{
			From: from, To: to, Payload: u.Payload, Segment: p.Segment, TTL: p.TTL, Quote: quote(p), Packet: p,
		})
	}
}

// query hands DNS queries, one in each segment, to the name service.
func (e *Engine) query(from, to netip.AddrPort, payload []byte, segment int) {
	reply := func(answer []byte) { e.link.SendUDP(to, from, answer, 0) }
	if segment == 0 {
		segment = max(len(payload), 1)
	}
	for len(payload) > 0 {
		n := min(segment, len(payload))
		e.dns.Query(payload[:n], reply)
		payload = payload[n:]
	}
}

// handleICMP sends echo requests out. Nothing else that a container says in
// ICMP concerns anyone: its errors are about packets that the engine made.
func (e *Engine) handleICMP(p link.Packet) {
	v6 := p.Proto == inet.ProtoICMPv6
	if v6 == p.Src.Is4() {
		e.flows.Counters.Inc(flow.DropMalformed)
		return
	}
	m, ok := icmp.ParseEcho(v6, p.Payload(p.Bytes))
	if !ok || m.Reply {
		e.flows.Counters.Inc(flow.DropUnknownProtocol)
		return
	}
	e.echo.Handle(echo.Request{
		From: p.Src, To: p.Dst, ID: m.ID, Seq: m.Seq, Payload: m.Payload, TTL: p.TTL, Quote: quote(p),
	})
}

// handleReassembledICMP also answers echo to the engine's own addresses, which
// the link answers when it is not fragmented.
func (e *Engine) handleReassembledICMP(p link.Packet) {
	if !e.cfg.Plan.Owned(p.Dst) {
		e.handleICMP(p)
		return
	}
	m, ok := icmp.ParseEcho(!p.Src.Is4(), p.Payload(p.Bytes))
	if ok && !m.Reply {
		e.link.SendEchoReply(p.Dst, p.Src, m.ID, m.Seq, m.Payload)
	}
}

// quote is the beginning of a packet for an ICMP error.
func quote(p link.Packet) []byte {
	return p.Bytes[:min(len(p.Bytes), p.HeaderLen+quoteLen)]
}

// localName answers the names that the engine itself knows. The host is reached
// by the gateway's address if that is an alias of its loopback, otherwise by the
// address with which it reaches the outside at this moment.
func (e *Engine) localName(name string) ([]netip.Addr, bool) {
	switch name {
	case "gateway.postern.internal.":
		return e.gateways(), true
	case "host.postern.internal.", "host.containers.internal.", "host.docker.internal.":
		if e.cfg.HostLoopback {
			return e.gateways(), true
		}
		if addrs := hostAddresses(e.cfg); len(addrs) > 0 {
			return addrs, true
		}
		return e.gateways(), true
	}
	return nil, false
}

func (e *Engine) gateways() []netip.Addr {
	var addrs []netip.Addr
	for _, a := range []netip.Addr{e.cfg.Plan.V4.Gateway, e.cfg.Plan.V6.Gateway} {
		if a.IsValid() {
			addrs = append(addrs, a)
		}
	}
	return addrs
}

// hostAddresses asks the host's routing which of its addresses it would use
// towards the documentation networks (RFC 5737, RFC 3849), which stand for the
// default route. Connecting a UDP socket sends nothing.
func hostAddresses(c Config) []netip.Addr {
	var addrs []netip.Addr
	for _, f := range []struct {
		on             bool
		network, probe string
	}{{c.Plan.V4.On(), "udp4", "192.0.2.1:9"}, {c.Plan.V6.On(), "udp6", "[2001:db8::1]:9"}} {
		if !f.on {
			continue
		}
		conn, err := net.Dial(f.network, f.probe)
		if err != nil {
			continue // no route in this family now
		}
		if a, ok := conn.LocalAddr().(*net.UDPAddr); ok {
			if addr := a.AddrPort().Addr().Unmap(); !addr.IsLoopback() {
				addrs = append(addrs, addr.WithZone(""))
			}
		}
		conn.Close()
	}
	return addrs
}
