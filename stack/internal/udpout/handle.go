package udpout

import (
	"errors"
	"net/netip"

	"github.com/postern-net/postern/proto/icmp"
	"github.com/postern-net/postern/stack/guard"
	"github.com/postern-net/postern/stack/hostsock"
	"github.com/postern-net/postern/stack/internal/flow"
	"github.com/postern-net/postern/stack/internal/hosterr"
)

// defaultTTL is the hop limit that Linux gives datagrams by default. One below
// it was chosen by the application, or used up on a way of its own.
const defaultTTL = 64

// Handle sends a datagram of the container, now or with the next Flush. It never
// waits. Only one goroutine may call it and Flush.
func (t *Table) Handle(d Datagram) {
	t.reader.handle(d)
	if t.express != nil && t.express.overdue() {
		t.Flush()
	}
}

// Flush sends what Handle has collected. The reader calls it when it has run dry,
// before it waits.
func (t *Table) Flush() {
	t.reader.flush()
	if t.express != nil {
		t.express.ranDry()
	}
}

// outlet is the universal way out of one goroutine.
type outlet struct {
	t      *Table
	writer hostsock.Writer
	batch  batch
}

func (o *outlet) handle(d Datagram) {
	if o.batch.add(d) {
		if o.batch.full() {
			o.flush()
		}
		return
	}
	o.flush()
	t := o.t
	if d.From.Port() == 0 || d.From.Addr().Is4() != d.To.Addr().Is4() {
		t.cfg.Flows.Counters.Inc(flow.DropMalformed)
		return
	}
	v := t.cfg.Guard.Decide(guard.UDP, d.To)
	if !v.Allowed() {
		t.refuse(d, v.Reason)
		return
	}
	if d.TTL <= 1 {
		t.sendError(icmp.TimeExceeded, 0, d.From, d.To, d.Quote)
		return
	}
	m, err := t.mapping(d.From, classOf(d.To.Port()))
	if err != nil {
		t.failed(err, 1, d.From, d.To, d.Quote)
		return
	}
	if t.express != nil && t.express.takes(m, &d) {
		return
	}
	o.batch.start(m, v.Dial, d)
	if !o.batch.collects() {
		o.flush()
	}
}

// refuse answers a datagram that the guard does not let out. What was meant for
// many hosts gets no answer (RFC 1122 section 3.2.2).
func (t *Table) refuse(d Datagram, reason string) {
	t.cfg.Flows.Counters.Inc(flow.UDPRefusedGuard)
	if reason != guard.ReasonBroadcast && reason != guard.ReasonMulticast {
		t.sendError(icmp.AdminProhibited, 0, d.From, d.To, d.Quote)
	}
}

// flush sends what was collected.
func (o *outlet) flush() {
	b := &o.batch
	if b.m == nil {
		return
	}
	m := b.m
	b.m = nil
	m.sending(b.dial, b.to, &b.quote)
	p := hostsock.Packet{To: b.dial, Segment: b.segment, Payload: b.payload, TTL: passedOn(b.ttl)}
	if x := o.t.express; x != nil && b.count > 1 {
		x.heard(m, b.to, b.count-1) // the first was counted when it came
	}
	n, err := o.writer.Send(m.sock, p)
	b.payload = nil
	m.flow.BytesOut.Add(uint64(len(p.Payload)))
	if err != nil {
		o.t.failed(err, p.Datagrams()-n, m.from, b.to, b.quote.bytes())
	}
}

// passedOn is the hop limit to send with, 0 for the host's default.
func passedOn(ttl uint8) uint8 {
	if ttl < defaultTTL {
		return ttl - 1
	}
	return 0
}

// failed counts datagrams that could not be sent and tells the container, if the
// error says anything about their destination.
func (t *Table) failed(err error, lost int, from, to netip.AddrPort, quote []byte) {
	if errors.Is(err, errLimit) {
		return
	}
	t.cfg.Flows.Counters.Add(flow.UDPSendFailed, uint64(lost))
	// The host fragments what is too big for its link; a complaint about size
	// is one about the datagram itself, for which there is no ICMP error.
	if kind := hosterr.Of(err).Kind; kind != 0 && kind != icmp.FragmentationNeeded {
		t.sendError(kind, 0, from, to, quote)
	}
}

// sendError tells the container what became of a datagram to to, in the name of
// the gateway unless the kind says otherwise.
func (t *Table) sendError(kind icmp.Kind, mtu uint32, from, to netip.AddrPort, quote []byte) {
	reporter := hosterr.Reporter(kind, netip.Addr{}, to.Addr(), t.cfg.Guard.Plan)
	if len(quote) == 0 {
		quote = synthesize(nil, from, to, nil)
	}
	t.cfg.Sender.SendError(kind, mtu, reporter, from.Addr(), quote)
}
