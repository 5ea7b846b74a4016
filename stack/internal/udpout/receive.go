package udpout

import (
	"time"

	"github.com/postern-net/postern/stack/hostsock"
	"github.com/postern-net/postern/stack/internal/flow"
	"github.com/postern-net/postern/stack/internal/hosterr"
)

var _ hostsock.Handler = (*mapping)(nil)

// Receive hands a datagram from outside to the container.
func (m *mapping) Receive(msg hostsock.Message) {
	from, ok := m.target(msg.From)
	if !ok {
		m.t.cfg.Flows.Counters.Inc(flow.UDPRefusedFilter)
		return
	}
	m.received()
	m.flow.BytesIn.Add(uint64(len(msg.Payload)))
	if x := m.t.express; x != nil && x.passes(m, from, msg) {
		return
	}
	m.t.cfg.Sender.SendUDP(from, m.from, msg.Payload, msg.Segment)
}

// reorder is how old a mapping's place among the others may get before a
// datagram that did not come by Handle renews it. It spares the lock for most.
const reorder = time.Second

// received notes that the mapping is in use from outside. RFC 4787 REQ-6 leaves
// the choice; one-way streams need it.
func (m *mapping) received() { m.touch(true) }

// touch notes that the mapping is in use.
func (m *mapping) touch(reply bool) {
	age := m.t.age()
	m.lastUsed.Store(int64(age))
	first := reply && !m.replied.Load()
	if !first && age-time.Duration(m.placed.Load()) < reorder {
		return
	}
	m.t.mu.Lock()
	defer m.t.mu.Unlock()
	if m.t.mappings[m.from] != m {
		return
	}
	m.placed.Store(int64(age))
	q := m.queue
	if first {
		m.replied.Store(true)
		q = m.t.lru[m.class][1]
	}
	m.queue.Remove(m.element)
	m.queue, m.element = q, q.PushBack(m)
}

// Report tells the container what became of one of its datagrams.
func (m *mapping) Report(r hostsock.Report) {
	if r.Kind == 0 {
		return
	}
	to, ok := m.target(r.Target)
	if !ok {
		return
	}
	m.mu.Lock()
	last := m.last
	m.mu.Unlock()
	quoted := last.quote.bytes()
	if last.to != to || len(quoted) == 0 {
		quoted = synthesize(make([]byte, 0, 2*maxQuote), m.from, to, r.Payload)
	}
	reporter := hosterr.Reporter(r.Kind, r.Offender, to.Addr(), m.t.cfg.Guard.Plan)
	m.t.cfg.Sender.SendError(r.Kind, r.MTU, reporter, m.from.Addr(), quoted)
}
