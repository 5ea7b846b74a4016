package udpout

import (
	"errors"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/proto/icmp"
	"github.com/postern-net/postern/stack/guard"
	"github.com/postern-net/postern/stack/hostsock"
	"github.com/postern-net/postern/stack/internal/flow"
)

// pair is the inner side of a flow that has moved over: a socket of the container's
// namespace, bound to the remote as the container knows it, connected to the
// container. The outer side is the mapping's.
type pair struct {
	x    *express
	m    *mapping
	to   netip.AddrPort
	sock *hostsock.Socket

	used atomic.Int64 // age of the last use in nanoseconds

	// turned is the age at which a datagram was last written back, which written says,
	// or something sent to the container first; 0 for never. Both are the reader's.
	// arrived says that something came from the container since.
	turned  time.Duration
	written bool
	arrived atomic.Bool

	marked atomic.Bool // the container's kernel has been told: what is for it may go this way
	sequence
}

var _ hostsock.Handler = (*pair)(nil)

func (p *pair) lastUsed() time.Duration { return time.Duration(p.used.Load()) }

// lane is the pairs of one mapping; mapping.mu guards it.
type lane struct {
	pairs map[netip.AddrPort]*pair // by remote as the container knows it
	ended bool
}

// pair returns the pair towards a remote, or nil.
func (m *mapping) pair(to netip.AddrPort) *pair {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.lane.pairs[to]
}

// enter adds a pair unless there is one.
func (m *mapping) enter(p *pair) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.lane.ended || m.lane.pairs[p.to] != nil {
		return false
	}
	if m.lane.pairs == nil {
		m.lane.pairs = make(map[netip.AddrPort]*pair)
	}
	m.lane.pairs[p.to] = p
	m.flow.SetPath(flow.Express)
	return true
}

func (m *mapping) leave(p *pair) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.lane.pairs[p.to] == p {
		delete(m.lane.pairs, p.to)
	}
	if len(m.lane.pairs) == 0 {
		m.flow.SetPath(flow.Universal)
	}
}

// endLane takes all pairs away; there will be no others.
func (m *mapping) endLane() (ps []*pair) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.lane.pairs {
		ps = append(ps, p)
	}
	m.lane.pairs, m.lane.ended = nil, true
	return ps
}

// takes is asked about a datagram that the container has sent by the universal path
// and reports whether it was written back to the container, for its pair.
func (x *express) takes(m *mapping, d *Datagram) bool {
	whole := len(d.Packet.Bytes) > 0 // a stray's is not there, and its flow is known to the kernel
	p := m.pair(d.To)
	if p == nil && x.talked(m, d.To, d.count()) {
		p = x.open(m, d.To, whole)
	}
	return p != nil && whole && p.turn(d)
}

// patience is how long datagrams of a flow that has moved over may still come by the
// universal path: what had left before. A full queue of a TAP is emptied sooner.
const patience = 100 * time.Millisecond

// turn writes a datagram back to the container, whose kernel is to hand it to the
// pair and to remember that. It is called by the reader.
func (p *pair) turn(d *Datagram) bool {
	age := p.x.t.age()
	if p.turned != 0 && age-p.turned < patience {
		return false
	}
	if p.written && !p.arrived.Load() {
		p.x.end(p)
		p.x.rest(p.m, p.to, missedRest)
		p.x.missed()
		return false
	}
	first := p.turned == 0
	p.turned, p.written = max(age, 1), true
	p.arrived.Store(false)
	if err := p.x.cfg.Reinject(d.Packet); err != nil {
		p.x.failed(err)
		p.x.end(p)
		p.x.rest(p.m, p.to, failedRest)
		return false
	}
	if first {
		p.begin(d.count())
	}
	return true
}

// passes is asked about what came from outside for a flow and reports whether the
// flow's pair has it.
func (x *express) passes(m *mapping, from netip.AddrPort, msg hostsock.Message) bool {
	packet := hostsock.Packet{Payload: msg.Payload, Segment: msg.Segment}
	p := m.pair(from)
	if p == nil && x.answers(m, from, packet.Datagrams()) {
		p = x.open(m, from, false)
	}
	if p == nil || !p.marked.Load() {
		return false
	}
	n, err := x.in.Send(p.sock, packet)
	if errors.Is(err, os.ErrClosed) || errors.Is(err, unix.EDESTADDRREQ) { // it ends, see Part
		return false
	}
	p.used.Store(m.lastUsed.Load())
	if err != nil {
		x.t.cfg.Flows.Counters.Add(flow.UDPExpressDropped, uint64(packet.Datagrams()-n))
	}
	return true
}

// Receive implements hostsock.Handler: it sends on what the container sent.
func (p *pair) Receive(msg hostsock.Message) {
	p.arrive()
	if !p.keeps(msg) {
		p.send(&p.x.out, msg)
	}
}

func (p *pair) arrive() {
	if !p.arrived.Load() {
		p.arrived.Store(true)
		p.x.answered()
	}
}

// Report implements hostsock.Handler. The socket has no error queue: a port of the
// container that is closed concerns nobody, as on the universal path.
func (p *pair) Report(hostsock.Report) {}

// rest is what a pair has left when it is closed.
type rest struct{ *pair }

// Receive implements hostsock.Handler.
func (r rest) Receive(msg hostsock.Message) { r.send(&r.x.drainOut, msg) }

// send sends what the container sent by the mapping's socket, under the same
// conditions as on the universal path.
func (p *pair) send(w *hostsock.Writer, msg hostsock.Message) {
	t, m := p.x.t, p.m
	if msg.From != m.from {
		return // came before the socket was connected, and is not the flow's
	}
	if p.x.claims(m.from, p.to, msg) {
		return
	}
	v := t.cfg.Guard.Decide(guard.UDP, p.to)
	if !v.Allowed() {
		t.refuse(Datagram{From: m.from, To: p.to, Payload: msg.Payload, Segment: msg.Segment}, v.Reason)
		return
	}
	if msg.TTL == 1 {
		t.sendError(icmp.TimeExceeded, 0, m.from, p.to, nil)
		return
	}
	m.touch(false)
	p.used.Store(m.lastUsed.Load())
	m.sending(v.Dial, p.to, &quote{})
	packet := hostsock.Packet{To: v.Dial, Payload: msg.Payload, Segment: msg.Segment, TTL: passedOn(ttlOf(msg))}
	n, err := w.Send(m.sock, packet)
	m.flow.BytesOut.Add(uint64(len(msg.Payload)))
	if err != nil {
		t.failed(err, packet.Datagrams()-n, m.from, p.to, nil)
	}
}

// ttlOf is the hop limit of a message; without one it is nobody's choice.
func ttlOf(msg hostsock.Message) uint8 {
	if msg.TTL == 0 {
		return defaultTTL
	}
	return msg.TTL
}

// claims asks whether somebody else has a right to a message of the container.
func (x *express) claims(from, to netip.AddrPort, msg hostsock.Message) bool {
	return x.cfg.Claim != nil && x.cfg.Claim(from, to, msg.Payload, msg.Segment)
}

// stray receives what the container has sent on flows that have no pair any more.
// They go the universal way, and back to a pair if they keep talking.
type stray struct{ x *express }

// Receive implements hostsock.Handler.
func (s stray) Receive(msg hostsock.Message) {
	x := s.x
	d := Datagram{From: msg.From, To: msg.Target, Payload: msg.Payload, Segment: msg.Segment, TTL: ttlOf(msg)}
	x.t.cfg.Flows.Counters.Add(flow.UDPExpressLate, uint64(d.count()))
	if !d.To.IsValid() {
		x.t.cfg.Flows.Counters.Inc(flow.DropMalformed)
		return
	}
	if x.claims(d.From, d.To, msg) {
		return
	}
	x.late.handle(d)
	x.late.flush()
}

// Report implements hostsock.Handler. The socket has no error queue.
func (stray) Report(hostsock.Report) {}
