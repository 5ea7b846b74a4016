package udpout

import (
	"net/netip"

	"github.com/postern-net/postern/stack/hostsock"
)

const (
	// maxBatch is how many datagrams are sent at once (the kernel's
	// UDP_MAX_SEGMENTS before Linux 6.9).
	maxBatch = 64

	// maxCollected is the largest datagram in bytes that is copied into a batch:
	// larger ones do not fit a segment of any usual network (9,000 bytes with
	// jumbo frames) and gain little.
	maxCollected = 8972
)

// batch is what Handle has collected: datagrams from one mapping to one address,
// all of one size but for the last. It is empty when m is nil.
type batch struct {
	m        *mapping
	from, to netip.AddrPort
	dial     netip.AddrPort
	ttl      uint8
	quote    quote // of the datagram added last
	// segment is the size of the datagrams, as for hostsock.Packet.
	segment int
	count   int
	closed  bool // nothing can be added
	// payload is either in buf or, while closed, the reader's.
	payload []byte
	buf     []byte
}

// start begins a batch with d.
func (b *batch) start(m *mapping, dial netip.AddrPort, d Datagram) {
	b.m, b.from, b.to, b.dial, b.ttl = m, d.From, d.To, dial, d.TTL
	b.quote.set(d.Quote)
	b.segment, b.count = d.Segment, 1
	size := len(d.Payload)
	// Empty datagrams have no size to cut a batch by.
	b.closed = d.Segment > 0 || size == 0 || size > maxCollected || !m.sock.CanSegment(size)
	if b.closed {
		b.payload = d.Payload
		return
	}
	if b.buf == nil {
		b.buf = make([]byte, hostsock.MaxPayload)
	}
	b.segment = size
	b.payload = append(b.buf[:0], d.Payload...)
}

// collects reports whether more may be added to the batch.
func (b *batch) collects() bool { return !b.closed }

// add adds d to the batch under way if it is the next of the same kind. The
// guard has let the first one out; the same answer holds for all of them.
func (b *batch) add(d Datagram) bool {
	size := len(d.Payload)
	if b.m == nil || b.closed || d.Segment > 0 || d.From != b.from || d.To != b.to || d.TTL != b.ttl {
		return false
	}
	if size == 0 || size > b.segment || len(b.payload)+size > hostsock.MaxPayload {
		return false
	}
	b.payload = append(b.payload, d.Payload...)
	b.quote.set(d.Quote)
	b.count++
	b.closed = size < b.segment
	return true
}

// full reports whether the batch must go out now.
func (b *batch) full() bool { return b.closed || b.count == maxBatch }
